//! Hash sets: what is known of one file, from its own row or item and from Defender's file profile (`relay.md` 6.7).

use std::collections::HashMap;

use crate::{
    defender::model::{Evidence, File, Hashes},
    relay::{Kind, ctim::Typed, observable::hex},
};

impl From<&File> for Hashes {
    fn from(file: &File) -> Self {
        from_options(file.sha1.as_deref(), file.sha256.as_deref(), file.md5.as_deref())
    }
}

/// The hashes that an evidence item itself names.
pub(super) fn of_evidence(item: &Evidence) -> Hashes {
    from_options(item.sha1.as_deref(), item.sha256.as_deref(), None)
}

fn from_options(sha1: Option<&str>, sha256: Option<&str>, md5: Option<&str>) -> Hashes {
    let own = |hash: Option<&str>| hash.unwrap_or_default().to_owned();
    clean(&Hashes { sha1: own(sha1), sha256: own(sha256), md5: own(md5) })
}

/// Lower case, and only what has the form of its kind: a hash becomes a path segment of the profile lookup.
fn clean(hashes: &Hashes) -> Hashes {
    let clean = |hash: &str, digits| hex(hash.trim(), digits).unwrap_or_default();
    Hashes { sha1: clean(&hashes.sha1, 40), sha256: clean(&hashes.sha256, 64), md5: clean(&hashes.md5, 32) }
}

/// The hash under which the profile is to be looked up that completes these: SHA-1, else SHA-256. `None` when nothing
/// is missing, or when only the MD5 is known, which the file route does not take.
pub(super) fn profile_key(own: &Hashes) -> Option<String> {
    let own = clean(own);
    let complete = [&own.sha1, &own.sha256, &own.md5].iter().all(|hash| !hash.is_empty());
    [own.sha1, own.sha256].into_iter().find(|hash| !hash.is_empty() && !complete)
}

/// The item's own hashes, and those of its profile for the kinds that it lacks. Each item is completed for itself:
/// nothing is carried over from another (defect 32).
pub(super) fn completed(own: &Hashes, profiles: &HashMap<String, Hashes>) -> Hashes {
    let own = clean(own);
    let found = profile_key(&own).and_then(|_| profiles.get(&own.sha1).or_else(|| profiles.get(&own.sha256)));
    let Some(profile) = found.map(clean) else {
        return own;
    };
    let or = |own: String, profile: String| if own.is_empty() { profile } else { own };
    Hashes { sha1: or(own.sha1, profile.sha1), sha256: or(own.sha256, profile.sha256), md5: or(own.md5, profile.md5) }
}

/// The hashes of a set, always in the order SHA-1, SHA-256, MD5.
pub(super) fn typed(hashes: &Hashes) -> Vec<Typed> {
    [(Kind::Sha1, &hashes.sha1), (Kind::Sha256, &hashes.sha256), (Kind::Md5, &hashes.md5)]
        .into_iter()
        .filter(|(_, hash)| !hash.is_empty())
        .map(|(kind, hash)| Typed::new(kind.as_str(), hash))
        .collect()
}

/// Like with like: pairs of the kinds that both sets have; if they share none, the first of each.
pub(super) fn pairs(from: &Hashes, to: &Hashes) -> Vec<(Typed, Typed)> {
    let (from, to) = (typed(from), typed(to));
    let alike: Vec<_> = from
        .iter()
        .filter_map(|one| Some((one.clone(), to.iter().find(|other| other.kind == one.kind)?.clone())))
        .collect();
    if alike.is_empty() { from.into_iter().zip(to).take(1).collect() } else { alike }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sha1: &str, sha256: &str, md5: &str) -> Hashes {
        let of = |letter: &str, digits| letter.repeat(digits);
        Hashes { sha1: of(sha1, 40), sha256: of(sha256, 64), md5: of(md5, 32) }
    }

    #[test]
    fn a_profile_is_wanted_by_sha1_else_sha256_and_only_when_something_is_missing() {
        let rows = [
            (set("a", "b", "c"), None),
            (set("a", "b", ""), Some("a".repeat(40))),
            (set("A", "", "c"), Some("a".repeat(40))),
            (set("", "B", ""), Some("b".repeat(64))),
            (set("", "b", "c"), Some("b".repeat(64))),
            (set("", "", "c"), None),
            (set("", "", ""), None),
            (Hashes { sha1: "../machines".into(), ..set("", "", "") }, None),
        ];
        for (own, expected) in rows {
            assert_eq!(profile_key(&own), expected, "{own:?}");
        }
    }

    #[test]
    fn a_set_is_completed_from_its_own_profile_and_keeps_its_own_hashes() {
        let profiles = HashMap::from([("a".repeat(40), set("a", "E", "d")), ("f".repeat(64), set("", "f", "e"))]);
        let rows = [
            (set("A", "", ""), set("a", "e", "d")),
            (set("a", "b", ""), set("a", "b", "d")),
            (set("", "f", ""), set("", "f", "e")),
            // Defect 37: a hash that Defender does not know stands alone.
            (set("9", "", ""), set("9", "", "")),
            (set("", "", "d"), set("", "", "d")),
            // Defect 32: nothing of another file.
            (set("", "", ""), set("", "", "")),
        ];
        for (own, expected) in rows {
            assert_eq!(completed(&own, &profiles), expected, "{own:?}");
        }
    }

    #[test]
    fn sets_are_paired_like_with_like() {
        let shown = |from: &Hashes, to: &Hashes| {
            pairs(from, to).iter().map(|(from, to)| format!("{} {}", from.kind, to.kind)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&set("a", "b", "c"), &set("d", "e", "f")), ["sha1 sha1", "sha256 sha256", "md5 md5"]);
        assert_eq!(shown(&set("a", "b", ""), &set("", "e", "f")), ["sha256 sha256"]);
        assert_eq!(shown(&set("a", "b", ""), &set("", "", "f")), ["sha1 md5"]);
        assert_eq!(shown(&set("", "", "c"), &set("d", "e", "")), ["md5 sha1"]);
        assert!(shown(&set("", "", ""), &set("d", "e", "f")).is_empty());
    }

    #[test]
    fn a_profile_may_lack_any_hash() {
        let file = File { sha1: Some("A".repeat(40)), sha256: None, md5: Some(String::new()) };
        assert_eq!(Hashes::from(&file), set("a", "", ""));
    }
}
