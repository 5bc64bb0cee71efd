//! A module instance: what the platform keeps about a relay (`module-registration.md` 2), and the settings files in which
//! operators have it. Pure.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

/// The module type of relays that authenticate by a header of their own (`module-registration.md` 2).
pub const CUSTOM_RELAY_TYPE: &str = "a14ae422-01b6-5013-9876-695ff1b0ebe0";

/// What the platform may be told that a relay answers.
pub const APIS: [&str; 6] = [
    "health",
    "observe/observables",
    "deliberate/observables",
    "refer/observables",
    "respond/observables",
    "respond/trigger",
];

/// The member of `settings` that holds the token.
const HEADER: &str = "authorization-header";

/// What stands in place of a token where an instance is shown.
const CUT: &str = "***";

/// What is wrong with a settings file, all of it; each line names the member and the rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

/// By what an instance is found again: no two have both the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The name that people see.
    pub name: String,
    /// The id of its type.
    pub module_type_id: String,
}

impl Key {
    /// Whether an instance of the platform's is the one.
    pub fn fits(&self, registered: &Value) -> bool {
        registered["name"] == self.name.as_str() && registered["module_type_id"] == self.module_type_id.as_str()
    }
}

/// A module instance as it should be. It holds the token, so `Debug` shows its key only.
#[derive(Clone, PartialEq)]
pub struct Instance {
    /// Its name and type.
    pub key: Key,
    visibility: String,
    enabled: Option<bool>,
    settings: Map<String, Value>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Instance {
    /// The instance of a relay at `url`, which gets `token` with each call and is asked `apis` only.
    pub fn of_relay(key: Key, url: &str, token: &SecretString, apis: &[&str]) -> Self {
        let settings = json!({
            "url": url.trim_end_matches('/'),
            "auth-type": "authorization-header",
            HEADER: format!("Bearer {}", token.expose_secret()),
            "supported-apis": apis,
        });
        let Value::Object(settings) = settings else { unreachable!("the macro was given an object") };
        Self { key, visibility: "org".to_owned(), enabled: Some(true), settings }
    }

    /// Where the relay is; empty if the settings do not say.
    pub fn url(&self) -> &str {
        self.settings.get("url").and_then(Value::as_str).unwrap_or_default()
    }

    /// The token of its authorization header, if that is `Bearer` and one word.
    pub fn token(&self) -> Option<SecretString> {
        let mut words = self.settings.get(HEADER)?.as_str()?.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(scheme), Some(token), None) if scheme.eq_ignore_ascii_case("bearer") => Some(token.into()),
            _ => None,
        }
    }

    /// The body that creates it.
    pub fn to_body(&self) -> Value {
        let mut body = json!({
            "name": self.key.name,
            "module_type_id": self.key.module_type_id,
            "visibility": self.visibility,
            "settings": self.settings,
        });
        if let Some(enabled) = self.enabled {
            body["enabled"] = enabled.into();
        }
        body
    }

    /// The members in which `registered` differs, as they should be.
    pub fn changes(&self, registered: &Value) -> Map<String, Value> {
        let Value::Object(members) = self.to_body() else { unreachable!("a body is an object") };
        members.into_iter().filter(|(name, value)| registered.get(name) != Some(value)).collect()
    }
}

/// A body for a person to read: the authorization header without what follows its scheme.
pub fn shown(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(Value::String(header)) = body.pointer_mut(&format!("/settings/{HEADER}")) {
        let scheme = header.split_whitespace().next().filter(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        *header = scheme.map_or_else(|| CUT.to_owned(), |scheme| format!("{scheme} {CUT}"));
    }
    body
}

/// A settings file whose shape has been checked and whose variables have not been replaced yet.
#[derive(Debug)]
pub struct File {
    name: String,
    module_type_id: String,
    visibility: String,
    enabled: Option<bool>,
    settings: Map<String, Value>,
}

impl File {
    /// Reads a `relay_settings.json`: the object of the platform, or the form before it (`config` in place of
    /// `settings`; its `record` and `tags` mean nothing to the platform any more), with which the first relay came.
    ///
    /// # Errors
    /// All faults of its shape.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let mut members = match serde_json::from_str(text) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return Err(Faults(vec!["the settings are not a JSON object".to_owned()])),
            // Line and column, and nothing of the text, which may hold a token.
            Err(error) => {
                let place = format!("line {}, column {}", error.line(), error.column());
                return Err(Faults(vec![format!("the settings are not JSON: {place}")]));
            }
        };
        let mut faults = Vec::new();
        let earlier_form = members.contains_key("config") && !members.contains_key("settings");
        if earlier_form {
            members.remove("record");
            members.remove("tags");
            let config = members.remove("config").unwrap_or_default();
            members.insert("settings".to_owned(), config);
            members.entry("module_type_id").or_insert_with(|| CUSTOM_RELAY_TYPE.into());
            members.entry("visibility").or_insert_with(|| "org".into());
        }
        let mut text = |members: &mut Map<String, Value>, member: &str, path: &str| match members.remove(member) {
            Some(Value::String(text)) if !text.is_empty() => text,
            found => {
                let rule = if found.is_some() { "must be a text that is not empty" } else { "is missing" };
                faults.push(format!("{path}: {rule}"));
                String::new()
            }
        };
        let name = text(&mut members, "name", "name");
        let module_type_id = text(&mut members, "module_type_id", "module_type_id");
        let visibility = text(&mut members, "visibility", "visibility");
        let settings = members.remove("settings");
        let mut settings = settings.and_then(|settings| settings.as_object().cloned()).unwrap_or_default();
        let url = text(&mut settings, "url", "settings.url");
        settings.insert("url".to_owned(), url.into());
        let enabled = match members.remove("enabled") {
            None => None,
            Some(Value::Bool(enabled)) => Some(enabled),
            Some(_) => {
                faults.push("enabled: must be true or false".to_owned());
                None
            }
        };
        let is_api = |api: &Value| api.as_str().is_some_and(|api| APIS.contains(&api));
        let apis = settings.get("supported-apis").and_then(Value::as_array);
        if !apis.is_some_and(|apis| !apis.is_empty() && apis.iter().all(is_api)) {
            faults.push(format!("settings.supported-apis: must be a list of some of {}", APIS.join(", ")));
        }
        faults.extend(members.keys().map(|member| format!("{member}: is not a member of a module instance")));
        if faults.is_empty() {
            Ok(Self { name, module_type_id, visibility, enabled, settings })
        } else {
            Err(Faults(faults))
        }
    }

    /// Its key alone, with variables replaced.
    ///
    /// # Errors
    /// Names the variables that `variable` does not know.
    pub fn key(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Key, Faults> {
        let mut unknown = Vec::new();
        let name = expand(&self.name, &variable, &mut unknown);
        known(unknown, Key { name, module_type_id: self.module_type_id.clone() })
    }

    /// The instance, with `$NAME` and `${NAME}` in its name and in the texts of its settings replaced by what `variable`
    /// says; `$$` is a dollar sign. Replaced after the JSON was read, so that no value can change what the file says.
    ///
    /// # Errors
    /// Names the variables that `variable` does not know.
    pub fn instance(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Instance, Faults> {
        let mut unknown = Vec::new();
        let name = expand(&self.name, &variable, &mut unknown);
        let mut settings = self.settings.clone();
        for value in settings.values_mut() {
            if let Value::String(text) = value {
                *text = expand(text, &variable, &mut unknown);
            }
        }
        if let Some(Value::String(url)) = settings.get_mut("url") {
            url.truncate(url.trim_end_matches('/').len());
        }
        let key = Key { name, module_type_id: self.module_type_id.clone() };
        known(unknown, Instance { key, visibility: self.visibility.clone(), enabled: self.enabled, settings })
    }
}

fn known<T>(unknown: Vec<String>, value: T) -> Result<T, Faults> {
    if unknown.is_empty() {
        return Ok(value);
    }
    let mut faults: Vec<String> = unknown
        .into_iter()
        .map(|name| format!("${name}: the settings name this environment variable, which is not set"))
        .collect();
    faults.sort();
    faults.dedup();
    Err(Faults(faults))
}

fn expand(text: &str, variable: impl Fn(&str) -> Option<String>, unknown: &mut Vec<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let (name, end) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, end)) => (name, end),
            None => {
                after.split_at(after.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count())
            }
        };
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !is_name {
            expanded.push('$');
            rest = after;
            continue;
        }
        match variable(name) {
            Some(value) => expanded.push_str(&value),
            None => unknown.push(name.to_owned()),
        }
        rest = end;
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = r#"{"name": "${NAME}", "module_type_id": "type-1", "visibility": "org", "settings": {
        "url": "$URL/", "auth-type": "authorization-header", "authorization-header": "Bearer ${JWT}",
        "supported-apis": ["health", "observe/observables"], "custom_more": 7}}"#;
    const EARLIER: &str = r#"{"tags": ["default"], "name": "Microsoft Defender ATP",
        "record": "relay-module.module/RelayModule+Custom+CS", "config": {"url": "${URL}",
        "auth-type": "authorization-header", "authorization-header": "Bearer ${JWT}", "supported-apis": ["health"]}}"#;

    fn variable(name: &str) -> Option<String> {
        let value = match name {
            "NAME" => "Relay",
            "URL" => "https://relay.example",
            // What would break a file in which text is replaced before it is read.
            "JWT" => "pl4nted\"$NAME",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn both_forms_of_settings_files_are_read() {
        let instance = File::parse(NEW).unwrap().instance(variable).unwrap();
        assert_eq!(instance.to_body()["name"], "Relay");
        assert_eq!(instance.to_body()["settings"]["custom_more"], 7);
        assert_eq!(instance.url(), "https://relay.example");
        assert_eq!(instance.token().unwrap().expose_secret(), "pl4nted\"$NAME");
        let earlier = File::parse(EARLIER).unwrap().instance(variable).unwrap();
        let body = earlier.to_body();
        assert_eq!(body["module_type_id"], CUSTOM_RELAY_TYPE);
        assert_eq!(body["visibility"], "org");
        assert_eq!(body["settings"]["url"], "https://relay.example");
        for gone in ["tags", "record", "config", "enabled"] {
            assert!(body.get(gone).is_none(), "{gone}");
        }
    }

    #[test]
    fn all_faults_of_a_file_are_told_at_once_without_its_values() {
        let text = r#"{"name": "", "visibility": 1, "enabled": "pl4nted", "surplus": "pl4nted",
            "settings": {"url": null, "supported-apis": ["health", "pl4nted"]}}"#;
        let Faults(faults) = File::parse(text).unwrap_err();
        let told = faults.join("\n");
        for member in
            ["name", "module_type_id", "visibility", "enabled", "surplus", "settings.url", "settings.supported-apis"]
        {
            assert!(faults.iter().any(|fault| fault.starts_with(&format!("{member}: "))), "{member}: {told}");
        }
        assert!(!told.contains("pl4nted"), "{told}");
        for text in ["", "[]", r#"{"settings": "pl4nted"#] {
            let Faults(faults) = File::parse(text).unwrap_err();
            assert!(faults.len() == 1 && !faults[0].contains("pl4nted"), "{faults:?}");
        }
    }

    #[test]
    fn undefined_variables_are_named() {
        let file = File::parse(NEW).unwrap();
        let Faults(faults) = file.instance(|name| (name == "URL").then(|| "u".to_owned())).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("$JWT: ") && faults[1].starts_with("$NAME: "), "{faults:?}");
        assert_eq!(file.key(|_| Some("n".to_owned())).unwrap().name, "n");
    }

    #[test]
    fn variables_are_replaced_and_other_dollars_stay() {
        for (text, expected) in [
            ("$NAME-${NAME}ish", "Relay-Relayish"),
            ("$$NAME costs 5$ or $5", "$NAME costs 5$ or $5"),
            ("${", "${"),
            ("${NA ME}", "${NA ME}"),
            ("", ""),
        ] {
            let mut unknown = Vec::new();
            assert_eq!(expand(text, variable, &mut unknown), expected);
            assert!(unknown.is_empty(), "{text}");
        }
    }

    #[test]
    fn only_the_members_that_differ_are_changes() {
        let key = Key { name: "Relay".into(), module_type_id: "type-1".into() };
        let instance = Instance::of_relay(key.clone(), "https://relay.example/", &"jwt".into(), &["health"]);
        let mut registered = instance.to_body();
        registered["id"] = "1".into();
        assert!(key.fits(&registered));
        assert!(instance.changes(&registered).is_empty());
        registered["enabled"] = false.into();
        registered["settings"]["url"] = "https://other.example".into();
        let changes = instance.changes(&registered);
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["enabled", "settings"]);
        registered["name"] = "Other".into();
        assert!(!key.fits(&registered));
    }

    #[test]
    fn what_is_shown_holds_no_token() {
        let key = Key { name: "Relay".into(), module_type_id: "type-1".into() };
        let instance = Instance::of_relay(key, "https://relay.example", &"pl4nted".into(), &["health"]);
        let text = format!("{} {instance:?}", shown(&instance.to_body()));
        assert!(!text.contains("pl4nted") && text.contains("Bearer ***"), "{text}");
        let odd = json!({"settings": {HEADER: "pl4nted"}});
        assert_eq!(shown(&odd)["settings"][HEADER], "***");
    }
}
