//! Settings of the deployment's own applications in Entra: the one that reads, and perhaps one that isolates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::{Findings, parse};
use crate::defender::{Certificate, CertificateError, Credentials, Proof};
use crate::relay::token;

/// The applications that call Defender for hosts.
#[derive(Clone, Default, Args)]
pub struct ApplicationArgs {
    /// Directory (tenant) id of the machines
    #[arg(long, env = "TENANT_ID", value_name = "ID")]
    pub tenant_id: Option<String>,
    /// Id of the application that calls Defender for hosts
    #[arg(long, env = "APP_ID", value_name = "ID")]
    pub app_id: Option<String>,
    /// The application's secret
    #[arg(long, env = "APP_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub app_secret: Option<String>,
    /// File that holds APP_SECRET
    #[arg(long, env = "APP_SECRET_FILE", value_name = "PATH")]
    pub app_secret_file: Option<PathBuf>,
    /// File with the application's certificate (PEM), in place of the secret
    #[arg(long, env = "APP_CERTIFICATE_FILE", value_name = "PATH")]
    pub app_certificate_file: Option<PathBuf>,
    /// File with the certificate's private key (PEM, RSA, no passphrase) [default: it is in APP_CERTIFICATE_FILE too]
    #[arg(long, env = "APP_KEY_FILE", value_name = "PATH")]
    pub app_key_file: Option<PathBuf>,
    /// Id of an application of its own that isolates and releases machines, so that APP_ID needs to read only
    /// [default: APP_ID does both]
    #[arg(long, env = "RESPONSE_APP_ID", value_name = "ID")]
    pub response_app_id: Option<String>,
    /// Its secret
    #[arg(long, env = "RESPONSE_APP_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub response_app_secret: Option<String>,
    /// File that holds RESPONSE_APP_SECRET
    #[arg(long, env = "RESPONSE_APP_SECRET_FILE", value_name = "PATH")]
    pub response_app_secret_file: Option<PathBuf>,
    /// File with its certificate (PEM), in place of the secret
    #[arg(long, env = "RESPONSE_APP_CERTIFICATE_FILE", value_name = "PATH")]
    pub response_app_certificate_file: Option<PathBuf>,
    /// File with the certificate's private key [default: it is in RESPONSE_APP_CERTIFICATE_FILE too]
    #[arg(long, env = "RESPONSE_APP_KEY_FILE", value_name = "PATH")]
    pub response_app_key_file: Option<PathBuf>,
}

/// Shows no secret.
impl fmt::Debug for ApplicationArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplicationArgs")
            .field("tenant_id", &self.tenant_id)
            .field("app_id", &self.app_id)
            .field("response_app_id", &self.response_app_id)
            .finish_non_exhaustive()
    }
}

/// See [`ApplicationArgs`].
#[derive(Debug, Clone)]
pub struct Applications {
    /// As whom Defender is read, and called for everything where there is no other application.
    pub credentials: Credentials,
    /// As whom machines are isolated and released, if that is another application.
    pub response: Option<Credentials>,
}

/// The names of one application's settings.
struct Names {
    id: &'static str,
    secret: &'static str,
    certificate: &'static str,
    key: &'static str,
}

const READING: Names =
    Names { id: "APP_ID", secret: "APP_SECRET", certificate: "APP_CERTIFICATE_FILE", key: "APP_KEY_FILE" };
const RESPONSE: Names = Names {
    id: "RESPONSE_APP_ID",
    secret: "RESPONSE_APP_SECRET",
    certificate: "RESPONSE_APP_CERTIFICATE_FILE",
    key: "RESPONSE_APP_KEY_FILE",
};

impl ApplicationArgs {
    /// Whether any of the values is given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let text = |text: &Option<String>| parse::given(text.as_ref()).is_some();
        let texts = [&self.tenant_id, &self.app_id, &self.app_secret, &self.response_app_id, &self.response_app_secret];
        texts.into_iter().any(text)
            || [&self.app_secret_file, &self.app_certificate_file, &self.response_app_secret_file]
                .into_iter()
                .any(|path| file(path.as_ref()).is_some())
    }

    /// Checks and reads the values; `None` when one of them is a problem or missing.
    pub fn resolve(&self, findings: &mut Findings) -> Option<Applications> {
        let before = findings.problems.len();
        let id = |value: Option<&String>| parse::given(value).map(|value| value.trim().to_owned());
        let (tenant_id, app_id) = (id(self.tenant_id.as_ref()), id(self.app_id.as_ref()));
        let response_id = id(self.response_app_id.as_ref());
        for (setting, id) in [("TENANT_ID", &tenant_id), (READING.id, &app_id)] {
            if id.is_none() {
                findings
                    .problem(setting, "is not set: Defender is called for hosts as this application of this tenant");
            }
        }
        let proof = proof(
            findings,
            &READING,
            (self.app_secret.as_ref(), self.app_secret_file.as_ref()),
            (self.app_certificate_file.as_ref(), self.app_key_file.as_ref()),
            true,
        );
        for (setting, id) in [("TENANT_ID", &tenant_id), (READING.id, &app_id), (RESPONSE.id, &response_id)] {
            if id.as_ref().is_some_and(|id| !token::is_tenant_id(id)) {
                findings.problem(setting, "must be 1 to 255 letters, digits, '.' or '-'");
            }
        }
        let response_proof = self::proof(
            findings,
            &RESPONSE,
            (self.response_app_secret.as_ref(), self.response_app_secret_file.as_ref()),
            (self.response_app_certificate_file.as_ref(), self.response_app_key_file.as_ref()),
            response_id.is_some(),
        );
        if response_proof.is_some() && response_id.is_none() {
            findings.problem(RESPONSE.id, "is not set, but its secret or certificate is");
        }
        if findings.problems.len() > before {
            return None;
        }
        let tenant_id = tenant_id?;
        let response = response_id.zip(response_proof).map(|(client_id, proof)| Credentials {
            tenant_id: tenant_id.clone(),
            client_id,
            proof,
        });
        Some(Applications { credentials: Credentials { tenant_id, client_id: app_id?, proof: proof? }, response })
    }
}

fn file(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path).filter(|path| !path.as_os_str().is_empty())
}

/// The secret or the certificate of an application: one of them, and only if `wanted` a problem when there is none.
fn proof(
    findings: &mut Findings,
    names: &Names,
    (secret, secret_file): (Option<&String>, Option<&PathBuf>),
    (certificate, key): (Option<&PathBuf>, Option<&PathBuf>),
    wanted: bool,
) -> Option<Proof> {
    let before = findings.problems.len();
    let secret = parse::secret(findings, names.secret, secret, secret_file);
    if findings.problems.len() > before {
        return None;
    }
    match (secret, file(certificate), file(key)) {
        (Some(_), Some(_), _) => {
            let rule = format!("give either it or {}, not both", names.certificate);
            findings.problem(names.secret, rule);
            None
        }
        (_, None, Some(_)) => {
            findings.problem(names.key, format_args!("is set, but {} is not", names.certificate));
            None
        }
        (Some(secret), None, None) => Some(Proof::Secret(secret)),
        (None, Some(path), key) => certified(findings, names, path, key.unwrap_or(path)),
        (None, None, None) if wanted => {
            findings.problem(
                names.secret,
                format_args!(
                    "is not set, nor is {}_FILE or {}: it proves who the application is",
                    names.secret, names.certificate
                ),
            );
            None
        }
        (None, None, None) => None,
    }
}

fn certified(findings: &mut Findings, names: &Names, certificate: &Path, key: &Path) -> Option<Proof> {
    let key_setting = if certificate == key { names.certificate } else { names.key };
    let mut read = |setting: &str, path: &Path| {
        parse::secret_file(path)
            .inspect_err(|error| findings.problem(setting, format_args!("{}: {error}", path.display())))
            .ok()
    };
    let (text, key_text) = (read(names.certificate, certificate), read(key_setting, key));
    match Certificate::from_pem(text?.as_bytes(), key_text?.as_bytes()) {
        Ok(certificate) => Some(Proof::Certificate(Arc::new(certificate))),
        Err(error) => {
            let (setting, path) = match error {
                CertificateError::NoCertificate => (names.certificate, certificate),
                _ => (key_setting, key),
            };
            findings.problem(setting, format_args!("{}: {error}", path.display()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
    use tempfile::NamedTempFile;

    use super::*;

    fn args() -> ApplicationArgs {
        let set = |text: &str| Some(text.to_owned());
        ApplicationArgs {
            tenant_id: set("t.example"),
            app_id: set("app"),
            app_secret: set("pl4nted"),
            ..ApplicationArgs::default()
        }
    }

    fn resolve(args: &ApplicationArgs) -> Result<Applications, Vec<String>> {
        let mut findings = Findings::default();
        let applications = args.resolve(&mut findings);
        assert!(!format!("{findings:?} {applications:?} {args:?}").contains("pl4nted"));
        applications.ok_or(findings.problems)
    }

    fn written(text: &str) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn a_secret_or_a_certificate_proves_who_an_application_is() {
        assert!(matches!(resolve(&args()).unwrap().credentials.proof, Proof::Secret(_)));
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        let both = written(&format!("{}{certificate}", key.serialize_pem()));
        let (certificate, key) = (written(&certificate), written(&key.serialize_pem()));
        for (certificate, key) in [(both.path(), None), (certificate.path(), Some(key.path()))] {
            let given = ApplicationArgs {
                app_secret: None,
                app_certificate_file: Some(certificate.into()),
                app_key_file: key.map(Into::into),
                ..args()
            };
            assert!(matches!(resolve(&given).unwrap().credentials.proof, Proof::Certificate(_)));
        }
        let given = ApplicationArgs {
            response_app_id: Some("responder".into()),
            response_app_certificate_file: Some(both.path().into()),
            ..args()
        };
        let response = resolve(&given).unwrap().response.unwrap();
        assert_eq!((response.tenant_id.as_str(), response.client_id.as_str()), ("t.example", "responder"));
        let keyless = ApplicationArgs { response_app_key_file: Some("key.pem".into()), ..args() };
        assert_eq!(
            resolve(&keyless).unwrap_err(),
            ["RESPONSE_APP_KEY_FILE: is set, but RESPONSE_APP_CERTIFICATE_FILE is not"]
        );
        let wrong =
            ApplicationArgs { app_secret: None, app_certificate_file: Some(certificate.path().into()), ..args() };
        let problems = resolve(&wrong).unwrap_err();
        assert!(
            problems[0].starts_with("APP_CERTIFICATE_FILE: ") && problems[0].contains("no private key"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_second_application_is_given_whole_or_not_at_all() {
        let set = |text: &str| Some(text.to_owned());
        assert!(resolve(&args()).unwrap().response.is_none());
        let whole =
            ApplicationArgs { response_app_id: set("responder"), response_app_secret: set("pl4nted-2"), ..args() };
        assert_eq!(resolve(&whole).unwrap().response.unwrap().client_id, "responder");
        for (given, problem) in [
            (ApplicationArgs { response_app_id: set("responder"), ..args() }, "RESPONSE_APP_SECRET: is not set, nor"),
            (ApplicationArgs { response_app_secret: set("pl4nted-2"), ..args() }, "RESPONSE_APP_ID: is not set, but"),
            (ApplicationArgs { response_app_id: set("a/b"), ..whole.clone() }, "RESPONSE_APP_ID: must be"),
            (
                ApplicationArgs { app_certificate_file: Some("certificate.pem".into()), ..args() },
                "APP_SECRET: give either it or APP_CERTIFICATE_FILE",
            ),
            (
                ApplicationArgs { app_secret: None, app_certificate_file: Some("no such file".into()), ..args() },
                "APP_CERTIFICATE_FILE: no such file: ",
            ),
        ] {
            let problems = resolve(&given).unwrap_err();
            assert!(problems[0].starts_with(problem), "{problems:?}");
        }
    }
}
