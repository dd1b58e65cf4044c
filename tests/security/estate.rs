//! A daemon with tenants, and clients of them.

use memkv_core::{SpaceDescription, SpaceId};
use memkv_credentials::{Credentials, Key, Pattern, Public, Quotas, Rights, Tenant};
use memkv_proto::v1;
use memkv_tests::control::{Control, Session};
use memkv_tests::daemon::{Daemon, Setup};
use memkv_tests::wait_for;
use memkv_tests::wire::DataConn;
use memkv_transport::auth::AuthKey;
use memkv_transport::tenant::{ClientSecret, TenantKey};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The key that a number stands for.
pub(crate) fn auth_key(number: u8) -> AuthKey {
    AuthKey::from_bytes([number; 32])
}

/// Its text.
pub(crate) fn key_hex(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

/// What a client of a tenant proves.
pub(crate) fn secret(tenant: &str, number: u8) -> ClientSecret {
    ClientSecret::new(auth_key(number), Some(tenant))
}

/// An entry of the file: a tenant with all rights and one key.
pub(crate) fn tenant(name: &str, number: u8) -> Tenant {
    Tenant {
        name: name.to_owned(),
        rights: Rights::ALL,
        keys: vec![key(name, number)],
        certificates: Vec::new(),
        spaces: Vec::new(),
        operator: false,
        quotas: Quotas::default(),
    }
}

pub(crate) fn key(name: &str, number: u8) -> Key {
    let derived = TenantKey::new(&auth_key(number), name);
    Key { id: derived.key_id().to_owned(), verifier: derived.verifier().clone() }
}

/// Spaces of a tenant that all others may read.
pub(crate) fn public(owner: &str, pattern: &str) -> Public {
    Public { owner: owner.to_owned(), spaces: vec![Pattern::new(pattern)], readers: None }
}

/// A daemon and its credentials file.
pub(crate) struct Estate {
    pub(crate) daemon: Daemon,
    folder: TempDir,
}

impl Estate {
    /// With two tenants, `a` (key 1) and `b` (key 2), who have all rights.
    pub(crate) fn start() -> Self {
        Self::with(&of([tenant("a", 1), tenant("b", 2)]))
    }

    pub(crate) fn with(credentials: &Credentials) -> Self {
        Self::with_setup(credentials, Setup::default())
    }

    pub(crate) fn with_setup(credentials: &Credentials, mut setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials.yaml");
        credentials.save(&path).unwrap();
        setup.args.push(format!("--credentials={}", path.display()));
        Self { daemon: Daemon::start_with(setup).unwrap(), folder }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("credentials.yaml")
    }

    /// Replaces the file, and waits until the daemon has read it.
    pub(crate) fn change(&self, credentials: &Credentials) {
        let read = || self.daemon.log().matches("credentials read").count();
        let before = read();
        credentials.save(&self.file()).unwrap();
        wait_for("the daemon reads the file", PATIENCE, || (read() > before).then_some(())).unwrap();
    }

    /// The gRPC plane for a tenant whose key is this number.
    pub(crate) fn control(&self, name: &str, number: u8) -> Control {
        Control::connect_as(self.daemon.addr(), Some(secret(name, number))).unwrap()
    }

    /// The gRPC plane for the operator.
    pub(crate) fn operator(&self) -> Control {
        self.daemon.control().unwrap()
    }
}

pub(crate) fn of<const N: usize>(tenants: [Tenant; N]) -> Credentials {
    Credentials { tenants: tenants.into(), public: Vec::new() }
}

/// A tenant's session with one data connection.
pub(crate) struct Guest {
    pub(crate) control: Control,
    pub(crate) session: Session,
    pub(crate) data: DataConn,
}

impl Guest {
    pub(crate) fn of(estate: &Estate, name: &str, number: u8) -> Self {
        let control = estate.control(name, number);
        let session = control.session().unwrap();
        let data = session.attach().unwrap();
        Self { control, session, data }
    }
}

/// The identity that a tenant's space of this name has.
pub(crate) fn space_of(tenant: &str, name: &str) -> SpaceId {
    described(tenant, name).id()
}

pub(crate) fn described(tenant: &str, name: &str) -> SpaceDescription {
    SpaceDescription::named(name).unwrap().of_tenant(tenant).unwrap()
}

/// Opens a space that is described as a whole.
pub(crate) fn open(control: &Control, space: &SpaceDescription) -> Result<SpaceId, tonic::Status> {
    let message = v1::OpenSpaceRequest { space: Some(space.into()) };
    let request = control.request("/memkv.v1.Kv/OpenSpace", message);
    let response = control.block_on(control.kv().open_space(request))?.into_inner();
    Ok(memkv_proto::space_id_from_wire(&response.space_id).unwrap())
}
