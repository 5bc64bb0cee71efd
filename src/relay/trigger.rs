//! `/respond/trigger`: which action is asked for, on what (`relay.md` 7.3). The checks E15 to E18 in the contract's order;
//! what passes them can be carried out, and nothing else reaches a worker.

use super::payload::ActionForm;
use super::{Kind, Observable, RelayError};

/// What every action id of ours begins with.
pub const PREFIX: &str = "microsoft-defender-";

/// What is to be done, with what it is done to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// What.
    pub act: Act,
    /// To what: valid, and of a kind that the act is for.
    pub observable: Observable,
}

/// What a trigger asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Write an indicator.
    Add(Add),
    /// Delete the indicator of this id, which is digits.
    Remove(String),
    /// Do something with a machine.
    Machine(MachineAct),
}

/// What an indicator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Add {
    /// Raises an alert.
    Alert,
    /// Raises an alert and blocks.
    Block,
    /// Lets pass.
    Allow,
}

/// What can be done with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineAct {
    /// Cut it off from everything but Defender.
    IsolateFull,
    /// Cut it off, with the tenant's exceptions.
    IsolateSelective,
    /// End its isolation.
    Release,
    /// Let it run only what Microsoft signed.
    Restrict,
    /// End that.
    Unrestrict,
    /// Scan where malware usually is.
    ScanQuick,
    /// Scan everything.
    ScanFull,
    /// Collect an investigation package.
    Collect,
}

impl Add {
    /// All of them, in the order in which they are offered.
    pub const ALL: [Self; 3] = [Self::Alert, Self::Block, Self::Allow];

    /// The action id after [`PREFIX`].
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Alert => "add-indicator-alert",
            Self::Block => "add-indicator-alert-and-block",
            Self::Allow => "add-indicator-allowed",
        }
    }
}

/// The action id of a removal after [`PREFIX`].
pub const REMOVE: &str = "remove-indicator";

impl MachineAct {
    /// All of them. `InitiateInvestigation` is not among them: Microsoft ended it on 1 September 2026 (defect 74).
    pub const ALL: [Self; 8] = [
        Self::IsolateFull,
        Self::IsolateSelective,
        Self::Release,
        Self::Restrict,
        Self::Unrestrict,
        Self::ScanQuick,
        Self::ScanFull,
        Self::Collect,
    ];

    /// The action id after [`PREFIX`].
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::IsolateFull => "FullIsolation",
            Self::IsolateSelective => "SelectiveIsolation",
            Self::Release => "Unisolate",
            Self::Restrict => "RestrictCodeExecution",
            Self::Unrestrict => "UnrestrictCodeExecution",
            Self::ScanQuick => "RunAntiVirusScanQuick",
            Self::ScanFull => "RunAntiVirusScanFull",
            Self::Collect => "CollectInvestigationPackage",
        }
    }

    /// For a menu; it is the description too.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::IsolateFull => "Isolate Device: Full",
            Self::IsolateSelective => "Isolate Device: Selective",
            Self::Release => "Release from isolation",
            Self::Restrict => "Restrict app execution",
            Self::Unrestrict => "Remove app restrictions",
            Self::ScanQuick => "Run antivirus scan: Quick",
            Self::ScanFull => "Run antivirus scan: Full",
            Self::Collect => "Collect investigation package",
        }
    }

    /// Whether it isolates.
    #[must_use]
    pub const fn isolates(self) -> bool {
        matches!(self, Self::IsolateFull | Self::IsolateSelective)
    }

    /// Whether it isolates or ends an isolation: such triggers wait behind no others.
    #[must_use]
    pub const fn is_containment(self) -> bool {
        self.isolates() || matches!(self, Self::Release)
    }
}

/// Why a trigger is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// With `data.status` = `failure` (E15, E17, E18).
    Failure(RelayError),
    /// Without any data (E16).
    Bare(RelayError),
}

/// Defender's type of an indicator of this kind; machines have none.
#[must_use]
pub const fn indicator_type(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Sha1 => Some("FileSha1"),
        Kind::Sha256 => Some("FileSha256"),
        Kind::Md5 => Some("FileMd5"),
        Kind::Ip | Kind::Ipv6 => Some("IpAddress"),
        Kind::Domain => Some("DomainName"),
        Kind::MachineId => None,
    }
}

impl Trigger {
    /// Reads a form: what it asks for, checked in the contract's order.
    ///
    /// # Errors
    /// What is wrong with it first.
    pub fn of(form: &ActionForm) -> Result<Self, Refused> {
        let id = form.action_id.strip_prefix(PREFIX);
        let unsupported = || Refused::Failure(RelayError::unsupported_action());
        let id = id.ok_or_else(unsupported)?;
        let kind = Kind::parse(&form.observable_type);
        let observable = || {
            Observable::parse(&form.observable_type, &form.observable_value)
                .ok_or_else(|| Refused::Failure(RelayError::invalid_value()))
        };
        if kind == Some(Kind::MachineId) {
            let act = MachineAct::ALL.into_iter().find(|act| act.id() == id).ok_or_else(unsupported)?;
            return Ok(Self { act: Act::Machine(act), observable: observable()? });
        }
        let add = Add::ALL.into_iter().find(|add| add.id() == id);
        match add {
            Some(add) => {
                kind.ok_or_else(|| Refused::Bare(RelayError::unsupported_type(&form.observable_type)))?;
                Ok(Self { act: Act::Add(add), observable: observable()? })
            }
            None if id == REMOVE => {
                let observable = observable()?;
                let indicator_id = form.indicator_id.clone();
                let indicator_id = indicator_id.ok_or_else(|| Refused::Failure(RelayError::indicator_id_missing()))?;
                Ok(Self { act: Act::Remove(indicator_id), observable })
            }
            None => Err(unsupported()),
        }
    }

    /// Whether it isolates or releases.
    #[must_use]
    pub const fn is_containment(&self) -> bool {
        matches!(self.act, Act::Machine(act) if act.is_containment())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "6035c8a86d4961346736ec90e668c8d2694b7f57";

    fn form(action_id: &str, kind: &str, value: &str, indicator_id: Option<&str>) -> ActionForm {
        ActionForm {
            action_id: action_id.into(),
            observable_type: kind.into(),
            observable_value: value.into(),
            indicator_id: indicator_id.map(str::to_owned),
        }
    }

    #[test]
    fn every_action_is_known_for_its_kind_and_for_no_other() {
        for act in MachineAct::ALL {
            let id = format!("{PREFIX}{}", act.id());
            let read = Trigger::of(&form(&id, "MS_machine_id", &MACHINE.to_uppercase(), None)).unwrap();
            assert_eq!((read.act, read.observable.value.as_str()), (Act::Machine(act), MACHINE));
            for kind in ["domain", "sha1", "url"] {
                let refused = Trigger::of(&form(&id, kind, "a.example", None)).unwrap_err();
                assert_eq!(refused, Refused::Failure(RelayError::unsupported_action()), "{id} {kind}");
            }
        }
        for add in Add::ALL {
            let id = format!("{PREFIX}{}", add.id());
            // Defects 55 and 56.
            for (kind, value) in [
                ("MD5", "D41D8CD98F00B204E9800998ECF8427E"),
                ("SHA1", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
                ("ip", "192.0.2.1"),
                ("ipv6", "2001:db8::1"),
                ("domain", "a.example"),
            ] {
                assert_eq!(Trigger::of(&form(&id, kind, value, None)).unwrap().act, Act::Add(add));
            }
            let refused = Trigger::of(&form(&id, "ms_machine_id", MACHINE, None)).unwrap_err();
            assert_eq!(refused, Refused::Failure(RelayError::unsupported_action()));
        }
    }

    /// Each check wins over those after it.
    #[test]
    fn the_checks_come_in_their_order() {
        let add = "microsoft-defender-add-indicator-alert";
        let remove = "microsoft-defender-remove-indicator";
        let unsupported = Refused::Failure(RelayError::unsupported_action());
        let invalid = Refused::Failure(RelayError::invalid_value());
        let rows = [
            (form("microsoft-defender-", "domain", "?", None), unsupported.clone()),
            (form("add-indicator-alert", "domain", "a.example", None), unsupported.clone()),
            (form("microsoft-defender-InitiateInvestigation", "ms_machine_id", MACHINE, None), unsupported.clone()),
            (form("microsoft-defender-fullisolation", "ms_machine_id", MACHINE, None), unsupported.clone()),
            (form(remove, "ms_machine_id", MACHINE, Some("1")), unsupported),
            (form(add, "URL", "?", None), Refused::Bare(RelayError::unsupported_type("URL"))),
            (form(add, "domain", "a b", None), invalid.clone()),
            (form(add, "ip", "192.0.2.0/24", None), invalid.clone()),
            (form(remove, "domain", "a b", None), invalid.clone()),
            (form(remove, "url", "http://a.example/", Some("1")), invalid.clone()),
            (form("microsoft-defender-FullIsolation", "ms_machine_id", "m1/../../m2", None), invalid.clone()),
            (form("microsoft-defender-FullIsolation", "ms_machine_id", "finance-pc7", None), invalid),
            (form(remove, "domain", "a.example", None), Refused::Failure(RelayError::indicator_id_missing())),
        ];
        for (form, expected) in rows {
            assert_eq!(Trigger::of(&form).unwrap_err(), expected, "{form:?}");
        }
        let read = Trigger::of(&form(remove, "domain", "a.example", Some("13"))).unwrap();
        assert_eq!(read.act, Act::Remove("13".into()));
    }
}
