//! `/respond/observables`: the response actions that are offered (`relay.md` 7.1 and 7.2).

use serde::Serialize;
use serde_json::{Value, json};

use super::trigger::{Add, MachineAct, PREFIX, REMOVE};
use super::{Observable, RelayError, error};

const PRODUCT: &str = "Microsoft Defender for Endpoint";

/// One action, with exactly the members that the platform knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    id: String,
    title: String,
    description: String,
    categories: [&'static str; 2],
    #[serde(rename = "query-params")]
    query_params: QueryParams,
}

/// What the platform sends back with the trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct QueryParams {
    observable_type: String,
    observable_value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    indicator_id: Option<String>,
}

impl QueryParams {
    fn of(observable: &Observable, indicator_id: Option<String>) -> Self {
        Self {
            observable_type: observable.spelled_type.clone(),
            observable_value: observable.spelled_value.clone(),
            indicator_id,
        }
    }
}

impl Action {
    /// An offer to write an indicator.
    #[must_use]
    pub fn add(add: Add, observable: &Observable) -> Self {
        let (title, what) = match add {
            Add::Alert => ("Alert", "Alert"),
            Add::Block => ("Alert and Block", "Alert and Block"),
            Add::Allow => ("Allow", "Allow"),
        };
        Self {
            id: format!("{PREFIX}{}", add.id()),
            title: format!("Add indicator: {title}"),
            description: format!("Add indicator with {what} action for {}", observable.spelled_value),
            categories: [PRODUCT, "Add Indicator"],
            query_params: QueryParams::of(observable, None),
        }
    }

    /// An offer to delete an indicator: what it does in Defender's word, its title if it has one, its id.
    #[must_use]
    pub fn remove(observable: &Observable, action: &str, title: Option<&str>, indicator_id: &str) -> Self {
        let action = match action {
            "AlertAndBlock" => "Alert and Block",
            "BlockAndRemediate" => "Block and Remediate",
            other => other,
        };
        let title = title.filter(|title| !title.trim().is_empty()).map(|title| format!(" - {title}"));
        Self {
            id: format!("{PREFIX}{REMOVE}"),
            title: format!("Remove indicator: {action}{}", title.unwrap_or_default()),
            description: format!("Remove indicator with {action} action for {}", observable.spelled_value),
            categories: [PRODUCT, "Remove Indicator"],
            query_params: QueryParams::of(observable, Some(indicator_id.to_owned())),
        }
    }

    /// An offer to do something with a machine.
    #[must_use]
    pub fn machine(act: MachineAct, observable: &Observable) -> Self {
        Self {
            id: format!("{PREFIX}{}", act.id()),
            title: act.title().to_owned(),
            description: act.title().to_owned(),
            categories: [PRODUCT, "Machine Actions"],
            query_params: QueryParams::of(observable, None),
        }
    }
}

/// The whole body: the actions in request order, and what could not be found out. `data` is left out when there are errors
/// and no actions (`relay.md` 3.1).
#[must_use]
pub fn body(actions: &[Action], errors: Vec<RelayError>) -> Value {
    let errors = error::distinct(errors);
    match (actions, errors.as_slice()) {
        (_, []) => json!({ "data": actions }),
        ([], _) => json!({ "errors": errors }),
        _ => json!({ "data": actions, "errors": errors }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indicators_action_and_title_make_the_offer_to_remove_it() {
        let observable = Observable::parse("domain", "A.example").unwrap();
        // Defect 64: without a title there is no dash.
        for (action, title, expected) in [
            ("AlertAndBlock", Some("T"), "Remove indicator: Alert and Block - T"),
            ("BlockAndRemediate", Some("T"), "Remove indicator: Block and Remediate - T"),
            ("Block", None, "Remove indicator: Block"),
            ("Warn", Some(" "), "Remove indicator: Warn"),
        ] {
            let offered = serde_json::to_value(Action::remove(&observable, action, title, "13")).unwrap();
            assert_eq!(offered["title"], expected);
            assert_eq!(
                offered["query-params"],
                json!({"observable_type": "domain", "observable_value": "A.example", "indicator_id": "13"})
            );
        }
    }

    #[test]
    fn data_is_there_when_there_is_something_in_it() {
        let observable = Observable::parse("domain", "a.example").unwrap();
        let action = Action::add(Add::Allow, &observable);
        assert_eq!(body(&[], vec![]), json!({"data": []}));
        let twice = vec![RelayError::connection(), RelayError::connection()];
        assert_eq!(body(&[], twice), json!({"errors": [RelayError::connection()]}));
        let both = body(&[action], vec![RelayError::connection()]);
        assert_eq!(both["data"].as_array().unwrap().len(), 1);
        assert_eq!(both["errors"].as_array().unwrap().len(), 1);
    }
}
