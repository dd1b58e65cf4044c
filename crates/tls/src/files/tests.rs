use super::*;
use crate::{ClientAuth, ServerFiles, ServerTls};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // As careful people write it: the file is never half there.
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    /// Writes a certificate for `name` and returns its key, which is not yet written.
    fn certify(&self, name: &str, last_year: i32) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        self.write("cert", &params.self_signed(&key).unwrap().pem());
        key.serialize_pem()
    }

    fn files(&self) -> ServerFiles {
        ServerFiles { cert: self.path("cert"), key: self.path("key"), client_auth: ClientAuth::Off }
    }
}

#[test]
fn changed_files_are_read_once_they_have_come_to_rest() {
    let folder = Folder::new();
    folder.write("key", &folder.certify("one", 2099));
    let tls = ServerTls::open(folder.files()).unwrap();
    let name = || tls.certificate().identity.to_string();
    assert_eq!((tls.refresh(false), name()), (Refresh::Same, "one".to_owned()));
    // The certificate comes first; between the two looks that make it count, the key comes too.
    let key = folder.certify("two", 2099);
    assert_eq!(tls.refresh(false), Refresh::Same);
    folder.write("key", &key);
    assert_eq!((tls.refresh(false), name()), (Refresh::Same, "one".to_owned()));
    assert_eq!((tls.refresh(false), name()), (Refresh::Loaded, "two".to_owned()));
    assert_eq!(tls.refresh(false), Refresh::Same);
    // Who asks for it gets it at once.
    folder.write("key", &folder.certify("three", 2099));
    assert_eq!((tls.refresh(true), name()), (Refresh::Loaded, "three".to_owned()));
}

#[test]
fn files_that_do_not_fit_never_replace_those_that_do() {
    let folder = Folder::new();
    let key = folder.certify("good", 2099);
    folder.write("key", &key);
    let good = fs::read_to_string(folder.path("cert")).unwrap();
    let tls = ServerTls::open(folder.files()).unwrap();
    let other = folder.certify("other", 2099);
    let refused = |refresh: Refresh| match refresh {
        Refresh::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(tls.refresh(false), Refresh::Same);
    assert!(refused(tls.refresh(false)).contains("do not fit together"));
    assert_eq!(tls.refresh(false), Refresh::Same, "said once");
    for (text, word) in [("", "no certificate"), ("-----BEGIN CERTIFICATE-----\n?", "PEM")] {
        folder.write("cert", text);
        let why = refused(tls.refresh(true));
        assert!(why.contains(word), "{why}");
    }
    fs::remove_file(folder.path("cert")).unwrap();
    assert!(refused(tls.refresh(true)).contains("cannot read"));
    let over = folder.certify("over", 2001);
    folder.write("key", &over);
    assert!(refused(tls.refresh(true)).contains("expired"));
    assert_eq!(tls.certificate().identity.to_string(), "good");
    folder.write("cert", &good);
    folder.write("key", &key);
    assert_eq!(tls.refresh(true), Refresh::Loaded);
    drop(other);
}

#[test]
fn a_key_is_in_no_text_and_should_be_its_owners_alone() {
    let folder = Folder::new();
    let key = folder.certify("kv", 2099);
    folder.write("key", &key);
    let tls = ServerTls::open(folder.files()).unwrap();
    assert_eq!(tls.warning(), None);
    let secret = key.lines().nth(1).unwrap();
    let shown = format!("{tls:?} {:?} {:?}", tls.main().config(), private_key(&folder.path("key")).unwrap());
    assert!(!shown.contains(&secret[..20]), "{shown}");
    fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let warning = ServerTls::open(folder.files()).unwrap().warning().unwrap();
    assert!(warning.contains("chmod 600") && !warning.contains(secret), "{warning}");
    // What is no key is not shown either: it may be one.
    folder.write("key", &key.replace("PRIVATE KEY", "PRIVATE KEYS"));
    let error = ServerTls::open(folder.files()).unwrap_err().to_string();
    assert!(error.contains("no private key") && !error.contains(secret), "{error}");
}
