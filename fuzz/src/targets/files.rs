//! The credentials file, and the records that servers leave in etcd.

use memkv_credentials::Credentials;

/// A credentials file; what is understood is written and understood again as it was.
pub(super) fn credentials(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Credentials::parse(text) {
        Ok(credentials) => {
            let again = Credentials::parse(&credentials.to_yaml());
            assert!(
                again.is_ok_and(|again| again.to_yaml() == credentials.to_yaml()),
                "it reads as it was written"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal has a text"),
    }
}

pub(super) fn credential_seeds() -> Vec<Vec<u8>> {
    let verifier = "5a".repeat(64);
    let full = format!(
        "tenants:\n  - name: one\n    rights: [read, write]\n    keys:\n      - id: \"0011223344556677\"\n        verifier: {verifier}\n    \
         certificates: [\"one.example\"]\n    spaces: [\"model=*\"]\n    quotas:\n      dram: 1GiB\n      requests_per_second: 5\n  \
         - name: two\n    rights: [admin]\n    operator: true\npublic:\n  - owner: one\n    spaces: [\"a\"]\n    readers: [two]\n"
    );
    let small = "tenants:\n  - name: a\n    rights: [read]\n";
    vec![full.into_bytes(), small.into(), b"tenants: ~\n".to_vec(), b"tenants: [{name: \"\"}]\n".to_vec()]
}

/// A record of a member.
#[cfg(feature = "engine")]
pub(super) fn member(input: &[u8]) {
    if let Ok(member) = memkv_discovery::Member::from_record("a", input) {
        assert!(!member.host_port().is_empty() && member.port > 0, "a member has an address");
        let again = memkv_discovery::Member::from_record("a", &member.to_record());
        assert!(again.is_ok_and(|again| again == member), "a record reads as it was written");
    }
}

#[cfg(feature = "engine")]
pub(super) fn member_seeds() -> Vec<Vec<u8>> {
    let member = |host: &str| memkv_discovery::Member::new("a", host, 9900, 100).to_record();
    vec![member("10.0.0.1"), member("::1"), member("host.example"), b"{}".to_vec()]
}
