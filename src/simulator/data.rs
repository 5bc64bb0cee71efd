//! What one tenant's services know: alerts, file profiles, machines and hunting tables.
//!
//! Alerts and machines are kept as the JSON that REST sends. The hunting tables `AlertInfo`, `AlertEvidence` and
//! `DeviceInfo` are derived from them here, so that the two sides of the service cannot contradict each other.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::kql::{Database, InsertError, Table, Tables};

/// A row of a hunting table: column name to value. Columns that are absent are empty.
pub type Row = Map<String, Value>;

/// The product name that Defender for Endpoint's own alerts carry in hunting.
const SERVICE_SOURCE: &str = "Microsoft Defender for Endpoint";

/// The hunting table of network events.
pub(super) const NETWORK_EVENTS: &str = "DeviceNetworkEvents";

/// The hunting table of file events.
pub(super) const FILE_EVENTS: &str = "DeviceFileEvents";

/// The hunting table of network adapters.
const ADAPTERS: &str = "DeviceNetworkInfo";

/// The data of one tenant. Built member by member; later members do not replace earlier ones.
#[derive(Debug, Clone)]
pub struct Data {
    alerts: Vec<Value>,
    related: HashMap<(String, String), Vec<usize>>,
    files: HashMap<String, Arc<Value>>,
    machines: Vec<Value>,
    machine_ids: HashMap<String, usize>,
    /// By name in lower case.
    machine_names: BTreeMap<String, Vec<usize>>,
    /// By the addresses that REST shows of them.
    machine_addresses: HashMap<IpAddr, Vec<usize>>,
    /// Which device's adapter reported an address, and when.
    adapter_addresses: HashMap<IpAddr, Vec<(Timestamp, String)>>,
    /// By the machine's id, as the alert has it.
    machine_alerts: HashMap<String, Vec<usize>>,
    tables: Database,
}

/// The tables without rows; making them anew means reading the whole schema.
static EMPTY: LazyLock<Database> = LazyLock::new(Database::new);

impl Default for Data {
    fn default() -> Self {
        Self {
            alerts: Vec::new(),
            related: HashMap::new(),
            files: HashMap::new(),
            machines: Vec::new(),
            machine_ids: HashMap::new(),
            machine_names: BTreeMap::new(),
            machine_addresses: HashMap::new(),
            adapter_addresses: HashMap::new(),
            machine_alerts: HashMap::new(),
            tables: EMPTY.clone(),
        }
    }
}

impl Data {
    /// Adds an alert as REST shows it, found by its evidence and by each (kind, value) of `related`; kinds are `sha1`,
    /// `ip` and `domain`. Its rows in `AlertInfo` and `AlertEvidence` are made from it.
    ///
    /// # Errors
    /// When a member has another type than its hunting column.
    pub fn add_alert(&mut self, alert: Value, related: &[(&str, &str)]) -> Result<(), InsertError> {
        let index = self.alerts.len();
        let mut keys: Vec<(String, String)> =
            related.iter().map(|(kind, value)| ((*kind).to_owned(), value.to_ascii_lowercase())).collect();
        for evidence in alert["evidence"].as_array().into_iter().flatten() {
            keys.extend(evidence_keys(evidence));
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.related.entry(key).or_default().push(index);
        }
        self.add_row("AlertInfo", alert_info(&alert))?;
        for row in alert_evidence(&alert) {
            self.add_row("AlertEvidence", row)?;
        }
        if let Some(machine) = alert["machineId"].as_str() {
            self.machine_alerts.entry(machine.to_owned()).or_default().push(index);
        }
        self.alerts.push(alert);
        Ok(())
    }

    /// Adds a file profile, found by its `sha1` and its `sha256`.
    pub fn add_file(&mut self, file: Value) {
        let file = Arc::new(file);
        for member in ["sha1", "sha256"] {
            if let Some(hash) = file[member].as_str().filter(|hash| !hash.is_empty()) {
                self.files.insert(hash.to_ascii_lowercase(), Arc::clone(&file));
            }
        }
    }

    /// Adds a machine as REST shows it. With `inventory` hunting knows it too, as a row of `DeviceInfo`.
    ///
    /// # Errors
    /// When a member has another type than its hunting column.
    pub fn add_machine(&mut self, machine: Value, inventory: bool) -> Result<(), InsertError> {
        if inventory {
            self.add_row("DeviceInfo", device_info(&machine))?;
        }
        let place = self.machines.len();
        if let Some(id) = machine["id"].as_str() {
            self.machine_ids.insert(id.to_ascii_lowercase(), place);
        }
        if let Some(name) = machine["computerDnsName"].as_str() {
            self.machine_names.entry(name.to_ascii_lowercase()).or_default().push(place);
        }
        for entry in array(&machine["ipAddresses"]) {
            if let Some(address) = entry["ipAddress"].as_str().and_then(|text| text.parse().ok()) {
                self.machine_addresses.entry(address).or_default().push(place);
            }
        }
        self.machines.push(machine);
        Ok(())
    }

    /// Adds a row to a hunting table. Lists and objects become JSON text, as the service stores them.
    ///
    /// # Errors
    /// When there is no such table or column, or a value does not fit.
    pub fn add_row(&mut self, table: &str, row: Row) -> Result<(), InsertError> {
        let row: Row = row
            .into_iter()
            .map(|(column, value)| match value {
                Value::Array(_) | Value::Object(_) => (column, Value::String(value.to_string())),
                value => (column, value),
            })
            .collect();
        self.tables.insert_json(table, &row)?;
        if table == ADAPTERS {
            self.note_addresses(&row);
        }
        Ok(())
    }

    /// Remembers who reported the addresses of a row of [`ADAPTERS`].
    fn note_addresses(&mut self, row: &Row) {
        let text = |column: &str| row.get(column).and_then(Value::as_str);
        let (Some(device), Some(seen)) = (text("DeviceId"), text("Timestamp").and_then(|time| time.parse().ok()))
        else {
            return;
        };
        let list: Value = text("IPAddresses").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        for entry in array(&list) {
            if let Some(address) = entry["IPAddress"].as_str().and_then(|text| text.parse().ok()) {
                self.adapter_addresses.entry(address).or_default().push((seen, device.to_owned()));
            }
        }
    }

    /// Adds an event to the table its columns belong to: `RemoteIP` or `RemoteUrl` makes it a network event, anything
    /// else a file event.
    ///
    /// # Errors
    /// As [`Data::add_row`].
    pub fn add_event(&mut self, row: Row) -> Result<(), InsertError> {
        let network = row.contains_key("RemoteIP") || row.contains_key("RemoteUrl");
        self.add_row(if network { NETWORK_EVENTS } else { FILE_EVENTS }, row)
    }

    /// Adds one state of a network adapter: a row of `DeviceNetworkInfo` that is `Up`.
    ///
    /// # Errors
    /// When `seen` is no time.
    pub fn add_adapter(
        &mut self,
        device: &str,
        mac: &str,
        addresses: &[String],
        seen: &str,
    ) -> Result<(), InsertError> {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| {
                let prefix = if address.contains(':') { 64 } else { 24 };
                json!({"IPAddress": address, "SubnetPrefix": prefix, "AddressType": "Private"})
            })
            .collect();
        let mut row = Row::new();
        row.insert("Timestamp".to_owned(), seen.into());
        row.insert("DeviceId".to_owned(), device.into());
        row.insert("MacAddress".to_owned(), mac.into());
        row.insert("NetworkAdapterType".to_owned(), "Ethernet".into());
        row.insert("NetworkAdapterStatus".to_owned(), "Up".into());
        row.insert("IPAddresses".to_owned(), Value::Array(addresses));
        self.add_row(ADAPTERS, row)
    }

    /// Reads a worked example: `{"observable": {type, value}, "defender": {alerts, hunting_events, files, machines,
    /// adapters}}`. Its machines are known to REST only; its alerts are found by the observable. The time returned is
    /// the newest in the data: a clock set shortly after it makes all of it recent.
    ///
    /// # Errors
    /// When a row does not fit its table.
    pub fn from_example(example: &Value) -> Result<(Self, Option<Timestamp>), InsertError> {
        let mut data = Self::default();
        let defender = &example["defender"];
        let newest = newest_time(defender);
        let seen = newest.map_or_else(String::new, |time| time.to_string());
        for file in array(&defender["files"]) {
            data.add_file(file.clone());
        }
        let kind = example["observable"]["type"].as_str().unwrap_or_default();
        let value = example["observable"]["value"].as_str().unwrap_or_default().to_ascii_lowercase();
        // The alert routes know SHA-1 only: other hashes reach their alerts through the file's profile or its events.
        let sha1 = data.file(&value).and_then(|file| file["sha1"].as_str().map(str::to_owned));
        let related = match kind {
            "sha256" | "md5" => ("sha1", sha1.unwrap_or(value)),
            "ipv6" => ("ip", value),
            other => (other, value),
        };
        for alert in array(&defender["alerts"]["value"]) {
            data.add_alert(alert.clone(), &[(related.0, &related.1)])?;
        }
        for row in array(&defender["hunting_events"]["rows"]) {
            data.add_event(row.as_object().cloned().unwrap_or_default())?;
        }
        for machine in array(&defender["machines"]) {
            data.add_machine(machine.clone(), false)?;
        }
        for adapter in array(&defender["adapters"]) {
            let addresses: Vec<String> = array(&adapter["IPAddresses"])
                .iter()
                .filter_map(|address| address.as_str().map(str::to_owned))
                .collect();
            let (device, mac) = (&adapter["DeviceId"], &adapter["MacAddress"]);
            data.add_adapter(device.as_str().unwrap_or_default(), mac.as_str().unwrap_or_default(), &addresses, &seen)?;
        }
        Ok((data, newest))
    }

    /// Reads `{"alerts": [...], "files": [...], "machines": [...], "tables": {"DeviceFileEvents": [...]}}`. An alert's
    /// member `_related` (`[["ip", "203.0.113.7"]]`) says what else it is found by; a machine's member `_inventory:
    /// false` hides it from hunting. Members that begin with `_` are not sent.
    ///
    /// # Errors
    /// When a row does not fit its table.
    pub fn from_json(text: &Value) -> Result<Self, InsertError> {
        let mut data = Self::default();
        for file in array(&text["files"]) {
            data.add_file(shown(file));
        }
        for machine in array(&text["machines"]) {
            data.add_machine(shown(machine), machine["_inventory"] != json!(false))?;
        }
        for alert in array(&text["alerts"]) {
            let related: Vec<(&str, &str)> = array(&alert["_related"])
                .iter()
                .filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?)))
                .collect();
            data.add_alert(shown(alert), &related)?;
        }
        for (table, rows) in text["tables"].as_object().into_iter().flatten() {
            for row in array(rows) {
                data.add_row(table, row.as_object().cloned().unwrap_or_default())?;
            }
        }
        Ok(data)
    }

    /// All alerts, in the order they were added.
    pub fn alerts(&self) -> &[Value] {
        &self.alerts
    }

    /// The alerts found by a value; `kind` is `sha1`, `ip` or `domain`, the value in lower case.
    pub fn alerts_of(&self, kind: &str, value: &str) -> Vec<&Value> {
        let key = (kind.to_owned(), value.to_owned());
        self.related.get(&key).into_iter().flatten().filter_map(|&index| self.alerts.get(index)).collect()
    }

    /// The profile of a file, by SHA-1 or SHA-256 in lower case.
    pub fn file(&self, hash: &str) -> Option<&Value> {
        self.files.get(hash).map(Arc::as_ref)
    }

    /// All machines that REST knows.
    pub fn machines(&self) -> &[Value] {
        &self.machines
    }

    /// A machine by its id, or by its name as the service also allows.
    pub fn machine(&self, id_or_name: &str) -> Option<&Value> {
        let place = self.machine_place(id_or_name).or_else(|| self.machines_named(id_or_name).first().copied());
        self.machines.get(place?)
    }

    /// Where in [`Data::machines`] the one of this id is.
    pub(super) fn machine_place(&self, id: &str) -> Option<usize> {
        self.machine_ids.get(&id.to_ascii_lowercase()).copied()
    }

    /// Where in [`Data::machines`] those of this name are, in any case.
    pub(super) fn machines_named(&self, name: &str) -> Vec<usize> {
        self.machine_names.get(&name.to_ascii_lowercase()).cloned().unwrap_or_default()
    }

    /// Where in [`Data::machines`] those are whose name begins like this, in any case.
    pub(super) fn machines_with_prefix(&self, prefix: &str) -> Vec<usize> {
        let prefix = prefix.to_ascii_lowercase();
        let from = self.machine_names.range(prefix.clone()..);
        let mut places: Vec<usize> =
            from.take_while(|(name, _)| name.starts_with(&prefix)).flat_map(|(_, places)| places).copied().collect();
        places.sort_unstable();
        places
    }

    /// The machines that had this address at a time that `near` accepts: REST shows it and their last report is near, or
    /// an adapter of theirs reported it.
    pub(super) fn machines_at(&self, address: IpAddr, near: impl Fn(Timestamp) -> bool) -> Vec<&Value> {
        let shown = self.machine_addresses.get(&address).into_iter().flatten().copied().filter(|&place| {
            self.machines[place]["lastSeen"].as_str().and_then(|time| time.parse().ok()).is_some_and(&near)
        });
        let reports = self.adapter_addresses.get(&address).into_iter().flatten();
        let reported = reports.filter(|(seen, _)| near(*seen)).filter_map(|(_, device)| self.machine_place(device));
        let mut places: Vec<usize> = shown.chain(reported).collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(|place| &self.machines[place]).collect()
    }

    /// The alerts of the machine with this id.
    pub(super) fn alerts_of_machine(&self, id: &str) -> Vec<&Value> {
        self.machine_alerts.get(id).into_iter().flatten().map(|&index| &self.alerts[index]).collect()
    }

    /// A hunting table, if the schema has it.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.scan(name)
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn shown(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, _| !name.starts_with('_'));
    }
    value
}

/// The newest time anywhere in `value`.
fn newest_time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) if text.len() >= 20 => text.parse().ok(),
        Value::Array(items) => items.iter().filter_map(newest_time).max(),
        Value::Object(members) => members.values().filter_map(newest_time).max(),
        _ => None,
    }
}

/// What an alert is found by because of one piece of its evidence.
fn evidence_keys(evidence: &Value) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let text = |member: &str| evidence[member].as_str().filter(|text| !text.is_empty());
    if let Some(sha1) = text("sha1") {
        keys.push(("sha1".to_owned(), sha1.to_ascii_lowercase()));
    }
    if let Some(address) = text("ipAddress") {
        keys.push(("ip".to_owned(), plain_address(address)));
    }
    if let Some(host) = text("url").and_then(host) {
        keys.push(("domain".to_owned(), host));
    }
    keys
}

/// An address in the spelling the alert route is asked with: mapped IPv4 as IPv4.
fn plain_address(text: &str) -> String {
    match text.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => text.to_ascii_lowercase(),
    }
}

/// The host of a URL, or of a bare `host:port`, in lower case.
pub(super) fn host(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next()?;
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

fn text_of(value: &Value) -> Value {
    Value::String(value.as_str().unwrap_or_default().to_owned())
}

/// The time hunting files an alert under: REST may leave any of its times empty.
fn alert_time(alert: &Value) -> Value {
    ["alertCreationTime", "lastUpdateTime", "lastEventTime", "firstEventTime"]
        .into_iter()
        .map(|member| &alert[member])
        .find(|time| time.is_string())
        .cloned()
        .unwrap_or_default()
}

fn techniques(alert: &Value) -> Value {
    match &alert["mitreTechniques"] {
        Value::Array(list) if !list.is_empty() => Value::String(alert["mitreTechniques"].to_string()),
        Value::String(one) => Value::String(json!([one]).to_string()),
        _ => Value::String(String::new()),
    }
}

fn row(value: Value) -> Row {
    match value {
        Value::Object(members) => members,
        _ => Row::new(),
    }
}

fn alert_info(alert: &Value) -> Row {
    row(json!({
        "Timestamp": alert_time(alert),
        "AlertId": alert["id"],
        "Title": text_of(&alert["title"]),
        "Category": text_of(&alert["category"]),
        "Severity": text_of(&alert["severity"]),
        "ServiceSource": SERVICE_SOURCE,
        "DetectionSource": text_of(&alert["detectionSource"]),
        "AttackTechniques": techniques(alert),
    }))
}

fn alert_evidence(alert: &Value) -> Vec<Row> {
    let common = |entity: &Value, role: &str, time: &Value| {
        row(json!({
            "Timestamp": time,
            "AlertId": alert["id"],
            "Title": text_of(&alert["title"]),
            "Categories": alert["category"].as_str().map(|category| json!([category]).to_string()).unwrap_or_default(),
            "AttackTechniques": techniques(alert),
            "ServiceSource": SERVICE_SOURCE,
            "DetectionSource": text_of(&alert["detectionSource"]),
            "EntityType": text_of(entity),
            "EvidenceRole": role,
            "Severity": text_of(&alert["severity"]),
        }))
    };
    let time = alert_time(alert);
    let mut rows = Vec::new();
    if alert["machineId"].is_string() {
        let mut machine = common(&json!("Machine"), "Impacted", &time);
        machine.insert("DeviceId".to_owned(), text_of(&alert["machineId"]));
        machine.insert("DeviceName".to_owned(), text_of(&alert["computerDnsName"]));
        rows.push(machine);
    }
    for evidence in array(&alert["evidence"]) {
        let own = &evidence["evidenceCreationTime"];
        let mut entity = common(&evidence["entityType"], "Related", if own.is_string() { own } else { &time });
        for (column, member) in [
            ("FileName", "fileName"),
            ("FolderPath", "filePath"),
            ("SHA1", "sha1"),
            ("SHA256", "sha256"),
            ("ProcessCommandLine", "processCommandLine"),
            ("RemoteIP", "ipAddress"),
            ("RemoteUrl", "url"),
            ("AccountName", "accountName"),
            ("AccountDomain", "domainName"),
            ("AccountSid", "userSid"),
            ("AccountUpn", "userPrincipalName"),
            ("AccountObjectId", "aadUserId"),
            ("RegistryKey", "registryKey"),
        ] {
            entity.insert(column.to_owned(), text_of(&evidence[member]));
        }
        if let Some(id) = evidence["processId"].as_u64() {
            entity.insert("AdditionalFields".to_owned(), json!({"ProcessId": id.to_string()}).to_string().into());
        }
        rows.push(entity);
    }
    rows
}

fn device_info(machine: &Value) -> Row {
    row(json!({
        "Timestamp": machine["lastSeen"],
        "DeviceId": machine["id"],
        "DeviceName": text_of(&machine["computerDnsName"]),
        "ClientVersion": text_of(&machine["agentVersion"]),
        "PublicIP": text_of(&machine["lastExternalIpAddress"]),
        "OSArchitecture": text_of(&machine["osArchitecture"]),
        "OSPlatform": text_of(&machine["osPlatform"]),
        "OSBuild": machine["osBuild"],
        "IsAzureADJoined": machine["isAadJoined"],
        "AadDeviceId": text_of(&machine["aadDeviceId"]),
        "OSVersion": if machine["osPlatform"].as_str().is_some_and(|os| os.starts_with("Windows")) { "10.0" } else { "" },
        "OSVersionInfo": text_of(&machine["version"]),
        "MachineGroup": text_of(&machine["rbacGroupName"]),
        "ReportId": 1,
        "OnboardingStatus": text_of(&machine["onboardingStatus"]),
        "MergedToDeviceId": text_of(&machine["mergedIntoMachineId"]),
        "SensorHealthState": text_of(&machine["healthStatus"]),
        "IsExcluded": machine["isExcluded"],
        "ExposureLevel": text_of(&machine["exposureLevel"]),
        "MitigationStatus": "",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_cut_out_of_urls() {
        for (url, expected) in [
            ("https://A.example/b?c=d", Some("a.example")),
            ("http://u:p@a.example:8080/", Some("a.example")),
            ("a.example:8443", Some("a.example")),
            ("a.example", Some("a.example")),
            ("", None),
            ("https:///x", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn an_alert_is_found_by_its_evidence_and_by_what_is_said() {
        let mut data = Data::default();
        let alert = json!({"id": "da1_1", "evidence": [
            {"entityType": "File", "sha1": "AA"},
            {"entityType": "Ip", "ipAddress": "::ffff:203.0.113.7"},
            {"entityType": "Url", "url": "http://bad.example:8080/x"},
        ]});
        data.add_alert(alert, &[("domain", "Other.example")]).unwrap();
        for (kind, value, found) in [
            ("sha1", "aa", 1),
            ("ip", "203.0.113.7", 1),
            ("domain", "bad.example", 1),
            ("domain", "other.example", 1),
            ("domain", "example", 0),
        ] {
            assert_eq!(data.alerts_of(kind, value).len(), found, "{kind} {value}");
        }
        assert_eq!(data.table("AlertEvidence").unwrap().rows.len(), 3);
        assert_eq!(data.table("AlertInfo").unwrap().rows.len(), 1);
    }

    #[test]
    fn lists_in_rows_become_text() {
        let mut data = Data::default();
        data.add_adapter("d", "00005E005301", &["192.0.2.1".to_owned()], "2026-11-20T08:00:00Z").unwrap();
        let table = data.table("DeviceNetworkInfo").unwrap();
        let column = table.columns.iter().position(|(name, _)| name == "IPAddresses").unwrap();
        let text = table.rows[0][column].to_json();
        let text = text.as_str().unwrap();
        let parsed: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parsed[0]["IPAddress"], "192.0.2.1");
    }
}
