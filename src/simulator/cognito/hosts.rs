//! Reading hosts, entities and groups, and their lists (`cognito.md` 3.4, calls 1, 4 and 8; 3.5).

use serde_json::{Map, Value, json};

use super::super::answer::{Answer, PLAIN_JSON};
use super::super::request::encode;
use super::host::{self, Host, View, whole};
use super::state::{Entry, Group};
use super::{Call, Flavour, Kind, TagFilter, field_error, not_found};

/// Entries of a page when nothing is said, and the most that may be asked for (`cognito.md` 3.3).
const DEFAULT_PAGE_SIZE: usize = 50;
const PAGE_SIZE_LIMIT: usize = 5_000;

/// The parameters of the host list, besides `all`.
const LIST_PARAMETERS: [&str; 13] = [
    "page",
    "page_size",
    "tags",
    "threat",
    "threat_gte",
    "certainty",
    "certainty_gte",
    "state",
    "privilege_level_gte",
    "last_source",
    "name",
    "ordering",
    "fields",
];

/// What a list may be ordered by, descending with a minus before it.
const ORDERINGS: [&str; 4] = ["id", "name", "t_score", "c_score"];

/// Call 1.
pub(super) fn one(call: &Call<'_>, id: Option<u64>) -> Result<Answer, Answer> {
    call.parameters(&["fields", "include_external", "include_ldap"])?;
    let (base, told) = (call.request.base(), call.world.story_told());
    let view = View { base: &base, version: call.version, told, list: false };
    let mut state = call.state();
    state.stir();
    let shown = id.and_then(|id| state.hosts.get(&id)).map(|entry| host::full(&state, entry, &view));
    drop(state);
    let shown = shown.ok_or_else(|| not_found(call))?;
    Ok(Answer::json(200, PLAIN_JSON, &only(shown, call.parameter("fields"))))
}

/// A host as an entity of v3.
pub(super) fn entity(call: &Call<'_>, id: Option<u64>) -> Result<Answer, Answer> {
    call.kind(Kind::Entity)?;
    let (base, told) = (call.request.base(), call.world.story_told());
    let view = View { base: &base, version: call.version, told, list: false };
    let state = call.state();
    let shown = id.and_then(|id| state.hosts.get(&id)).map(|entry| host::entity(&state, entry, &view));
    drop(state);
    shown.map(|shown| Answer::json(200, PLAIN_JSON, &shown)).ok_or_else(|| not_found(call))
}

/// Call 4.
pub(super) fn list(call: &Call<'_>) -> Result<Answer, Answer> {
    let mut known = LIST_PARAMETERS.to_vec();
    if !call.state().behaviour.refuse_all {
        known.push("all");
    }
    call.parameters(&known)?;
    let filter = Filter::read(call)?;
    let ordering = call.parameter("ordering").unwrap_or("id");
    let (descending, key) = ordering.strip_prefix('-').map_or((false, ordering), |key| (true, key));
    if !ORDERINGS.contains(&key) {
        return Err(field_error("ordering", &format!("Invalid ordering '{ordering}' (simulated).")));
    }
    let (base, told) = (call.request.base(), call.world.story_told());
    let view = View { base: &base, version: call.version, told, list: true };
    let mut state = call.state();
    state.stir();
    let mut found: Vec<&Entry> = state.hosts.values().filter(|entry| filter.passes(&entry.host)).collect();
    match key {
        "name" => found.sort_by(|a, b| a.host.name.cmp(&b.host.name)),
        "t_score" => found.sort_by_key(|entry| entry.host.threat),
        "c_score" => found.sort_by_key(|entry| entry.host.certainty),
        _ => {}
    }
    if descending {
        found.reverse();
    }
    let page = Page::read(call, found.len(), state.behaviour.page_cap, state.behaviour.foreign_next_link.as_deref());
    let fields = call.parameter("fields");
    let page = page.map(|page| {
        let shown = |entry: &&Entry| only(host::full(&state, entry, &view), fields);
        let results = found.iter().skip(page.from).take(page.size).map(shown).collect();
        page.envelope(results)
    });
    drop(state);
    page.map_err(|wrong| wrong.answer(call))
}

/// Call 8. `name` finds every group whose name contains it, so that clients must compare exactly.
pub(super) fn groups(call: &Call<'_>) -> Result<Answer, Answer> {
    call.parameters(&["name", "type", "page", "page_size"])?;
    let name = call.parameter("name").unwrap_or_default().to_lowercase();
    let wanted = call.parameter("type").is_none_or(|kind| kind == "host");
    let base = call.request.base();
    let state = call.state();
    let found: Vec<&Group> =
        state.groups.iter().filter(|group| wanted && group.name.to_lowercase().contains(&name)).collect();
    let shown = |group: &&Group| {
        let members: Vec<Value> = state
            .hosts
            .values()
            .filter(|entry| entry.host.groups.contains(&group.name))
            .map(|entry| {
                json!({
                    "id": entry.host.id, "name": entry.host.name, "is_key_asset": entry.host.key_asset,
                    "url": format!("{base}/api/{}/hosts/{}", call.version.text, entry.host.id),
                })
            })
            .collect();
        json!({
            "id": group.id, "type": "host", "name": group.name, "description": "",
            "cognito_managed": false, "members": members, "rules": [], "importance": "high",
            "last_modified": whole(call.world.clock.now()), "last_modified_by": "soc-lead",
        })
    };
    let page = Page::read(call, found.len(), state.behaviour.page_cap, state.behaviour.foreign_next_link.as_deref());
    let page = page.map(|page| page.envelope(found.iter().skip(page.from).take(page.size).map(shown).collect()));
    drop(state);
    page.map_err(|wrong| wrong.answer(call))
}

/// With `fields=a,b`: only those members.
fn only(shown: Value, fields: Option<&str>) -> Value {
    match (shown, fields) {
        (Value::Object(members), Some(fields)) => {
            let wanted: Vec<&str> = fields.split(',').collect();
            let kept: Map<String, Value> =
                members.into_iter().filter(|(name, _)| wanted.contains(&name.as_str())).collect();
            Value::Object(kept)
        }
        (shown, _) => shown,
    }
}

/// Which hosts a list holds.
struct Filter {
    /// Any of them; in lower case unless compared exactly.
    tags: Option<Vec<String>>,
    compare: TagFilter,
    threat: (u8, u8),
    certainty: (u8, u8),
    active: Option<bool>,
    privilege_from: Option<u8>,
    address: Option<String>,
    name: Option<String>,
    all: bool,
}

impl Filter {
    fn read(call: &Call<'_>) -> Result<Self, Answer> {
        let compare = call.state().behaviour.tag_filter.unwrap_or(match call.version.flavour {
            Flavour::Qux => TagFilter::IgnoreCase,
            Flavour::Rux => TagFilter::Exact,
        });
        let tags = call.parameter("tags").filter(|tags| !tags.trim().is_empty()).map(|tags| {
            let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
            tags.map(|tag| if compare == TagFilter::Exact { tag.to_owned() } else { tag.to_lowercase() }).collect()
        });
        let number = |name: &str| -> Result<Option<u8>, Answer> {
            let read = |text: &str| text.parse().map_err(|_| field_error(name, "A valid integer is required."));
            call.parameter(name).map(read).transpose()
        };
        let range = |exact: &str, from: &str| -> Result<(u8, u8), Answer> {
            Ok(match number(exact)? {
                Some(score) => (score, score),
                None => (number(from)?.unwrap_or(0), u8::MAX),
            })
        };
        let active = match call.parameter("state") {
            None => None,
            Some("active") => Some(true),
            Some("inactive") => Some(false),
            Some(other) => return Err(field_error("state", &format!("\"{other}\" is not a valid choice."))),
        };
        let all = match call.parameter("all").map(str::to_lowercase).as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(field_error("all", &format!("\"{other}\" is not a valid boolean."))),
        };
        Ok(Self {
            tags,
            compare,
            threat: range("threat", "threat_gte")?,
            certainty: range("certainty", "certainty_gte")?,
            active,
            privilege_from: number("privilege_level_gte")?,
            address: call.parameter("last_source").map(str::to_owned),
            name: call.parameter("name").map(str::to_lowercase),
            all,
        })
    }

    fn passes(&self, host: &Host) -> bool {
        let tagged = |wanted: &String| {
            host.tags.iter().any(|tag| match self.compare {
                TagFilter::Exact => tag == wanted,
                TagFilter::IgnoreCase => tag.to_lowercase() == *wanted,
                TagFilter::Substring => tag.to_lowercase().contains(wanted),
            })
        };
        // Without `all`, hosts about which nothing is known any more are left out.
        (self.all || host.active || host.traffic || host.key_asset)
            && self.tags.as_ref().is_none_or(|tags| tags.iter().any(tagged))
            && (self.threat.0..=self.threat.1).contains(&host.threat)
            && (self.certainty.0..=self.certainty.1).contains(&host.certainty)
            && self.active.is_none_or(|active| host.active == active)
            && self.privilege_from.is_none_or(|from| host.privilege.is_some_and(|level| level >= from))
            && self.address.as_ref().is_none_or(|address| host.address.as_ref() == Some(address))
            && self.name.as_ref().is_none_or(|name| host.name.to_lowercase().contains(name))
    }
}

/// One page of a list.
#[derive(Debug)]
struct Page {
    /// Entries before it.
    from: usize,
    size: usize,
    count: usize,
    next: Option<String>,
    previous: Option<String>,
}

/// Why there is no such page.
#[derive(Debug)]
enum WrongPage {
    Page(String),
    Size(String),
}

impl WrongPage {
    fn answer(self, call: &Call<'_>) -> Answer {
        match self {
            Self::Page(text) => call.refuse(404, &text),
            Self::Size(text) => field_error("page_size", &text),
        }
    }
}

impl Page {
    fn read(call: &Call<'_>, count: usize, cap: Option<usize>, foreign: Option<&str>) -> Result<Self, WrongPage> {
        let asked = call.parameter("page").unwrap_or("1");
        let number: usize =
            asked.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
                WrongPage::Page(format!("Invalid page \"{asked}\": That is no page number (simulated)."))
            })?;
        let size: usize = match call.parameter("page_size") {
            None => DEFAULT_PAGE_SIZE,
            Some(text) => text.parse().ok().filter(|size| (1..=PAGE_SIZE_LIMIT).contains(size)).ok_or_else(|| {
                WrongPage::Size(format!("\"{text}\" is not between 1 and {PAGE_SIZE_LIMIT} (simulated)."))
            })?,
        };
        let size = size.min(cap.unwrap_or(size).max(1));
        let from = size.saturating_mul(number - 1);
        if from >= count && number > 1 {
            return Err(WrongPage::Page(format!("Invalid page \"{asked}\": That page contains no results.")));
        }
        let base = foreign.map_or_else(|| call.request.base(), str::to_owned);
        let link = |number: usize| {
            let others = call.request.query.iter().filter(|(name, _)| name != "page");
            let query: Vec<String> = std::iter::once(format!("page={number}"))
                .chain(others.map(|(name, value)| format!("{}={}", encode(name), encode(value))))
                .collect();
            format!("{base}{}?{}", call.request.uri.path(), query.join("&"))
        };
        Ok(Self {
            from,
            size,
            count,
            next: (from + size < count).then(|| link(number + 1)),
            previous: (number > 1).then(|| link(number - 1)),
        })
    }

    fn envelope(&self, results: Vec<Value>) -> Answer {
        let body = json!({"count": self.count, "next": self.next, "previous": self.previous, "results": results});
        Answer::json(200, PLAIN_JSON, &body)
    }
}

/// The members of a host in a search result (`cognito.md` 3.4, call 4).
const SEARCH_MEMBERS: &str =
    "id,name,state,threat,certainty,severity,last_source,last_seen,last_detection_timestamp,tags,url";

/// Call 4, the search: clauses `host.FIELD:VALUE` joined by `AND`.
pub(super) fn search(call: &Call<'_>) -> Result<Answer, Answer> {
    call.parameters(&["query_string", "page", "page_size"])?;
    let text = call.parameter("query_string").unwrap_or_default();
    let clauses = clauses(text)
        .ok_or_else(|| call.refuse(400, &format!("The query_string is not understood: {text} (simulated).")))?;
    let (base, told) = (call.request.base(), call.world.story_told());
    let view = View { base: &base, version: call.version, told, list: false };
    let state = call.state();
    let found: Vec<&Entry> =
        state.hosts.values().filter(|entry| clauses.iter().all(|clause| clause.passes(&entry.host))).collect();
    let page = Page::read(call, found.len(), state.behaviour.page_cap, state.behaviour.foreign_next_link.as_deref());
    let page = page.map(|page| {
        let shown = |entry: &&Entry| only(host::full(&state, entry, &view), Some(SEARCH_MEMBERS));
        page.envelope(found.iter().skip(page.from).take(page.size).map(shown).collect())
    });
    drop(state);
    page.map_err(|wrong| wrong.answer(call))
}

/// One clause of a search.
#[derive(Debug, PartialEq, Eq)]
enum Clause {
    Active(bool),
    /// Words are compared, not whole tags: a search finds tags that hold the phrase among others.
    Tag(String),
    Address(String),
    Threat(u8),
    Certainty(u8),
}

impl Clause {
    fn passes(&self, host: &Host) -> bool {
        match self {
            Self::Active(active) => host.active == *active,
            Self::Tag(words) => host.tags.iter().any(|tag| {
                let tag = words_of(tag);
                tag.windows(words_of(words).len().max(1)).any(|window| window == words_of(words))
            }),
            Self::Address(address) => host.address.as_ref() == Some(address),
            Self::Threat(from) => host.threat >= *from,
            Self::Certainty(from) => host.certainty >= *from,
        }
    }
}

/// A text's words in lower case, as a search index splits it.
fn words_of(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// The clauses of a query; none if it is not understood.
fn clauses(text: &str) -> Option<Vec<Clause>> {
    let mut clauses = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (field, after) = rest.strip_prefix("host.")?.split_once(':')?;
        let (value, after) = value(after)?;
        clauses.push(match (field, value.as_str()) {
            ("state", "active") => Clause::Active(true),
            ("state", "inactive") => Clause::Active(false),
            ("tags", _) => Clause::Tag(value),
            ("last_source", _) => Clause::Address(value),
            ("threat", number) => Clause::Threat(at_least(number)?),
            ("certainty", number) => Clause::Certainty(at_least(number)?),
            _ => return None,
        });
        rest = after.trim();
        if !rest.is_empty() {
            rest = rest.strip_prefix("AND ")?.trim_start();
        }
    }
    Some(clauses)
}

/// A bare value, or a phrase in quotes in which a backslash takes the next sign as it is; and what follows.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(phrase) = text.strip_prefix('"') else {
        let end = text.find(' ').unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut letters = phrase.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &phrase[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

/// `>=50` or `>49`.
fn at_least(text: &str) -> Option<u8> {
    match text.strip_prefix(">=") {
        Some(number) => number.parse().ok(),
        None => text.strip_prefix('>')?.parse::<u8>().ok()?.checked_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_read_clause_by_clause() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("host.state:\"active\"", Some(vec![Clause::Active(true)])),
            ("host.threat:>=50 AND host.certainty:>49", Some(vec![Clause::Threat(50), Clause::Certainty(50)])),
            ("host.tags:\"say \\\"no\\\"\"", Some(vec![Clause::Tag("say \"no\"".into())])),
            ("host.last_source:192.0.2.1", Some(vec![Clause::Address("192.0.2.1".into())])),
            ("host.tags:\"open", None),
            ("host.colour:red", None),
            ("host.state:active OR host.state:inactive", None),
            ("tags:x", None),
        ] {
            assert_eq!(clauses(text), expected, "{text}");
        }
    }
}
