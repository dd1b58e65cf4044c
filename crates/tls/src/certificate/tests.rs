use super::*;
use rcgen::date_time_ymd;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};

fn made(params: CertificateParams) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Certificate::read(certificate.der()).unwrap()
}

#[test]
fn names_and_times_are_read() {
    let mut params = CertificateParams::new(vec!["kv.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationName, "not this");
    params.distinguished_name.push(DnType::CommonName, "engine-7");
    params.subject_alt_names.push(SanType::URI("spiffe://cluster/engine".try_into().unwrap()));
    params.not_before = date_time_ymd(1999, 12, 31);
    params.not_after = date_time_ymd(2061, 3, 1);
    let read = made(params);
    assert_eq!(read.identity.common_name.as_deref(), Some("engine-7"));
    assert_eq!(read.identity.dns, ["kv.example"]);
    assert_eq!(read.identity.uris, ["spiffe://cluster/engine"]);
    assert_eq!(read.identity.to_string(), "spiffe://cluster/engine");
    let names: Vec<_> = read.identity.names().collect();
    assert_eq!(names, ["spiffe://cluster/engine", "kv.example", "engine-7"]);
    // What `date -u -d … +%s` says.
    assert_eq!(read.not_before, UNIX_EPOCH + Duration::from_secs(946_598_400));
    assert_eq!(read.expires_unix(), 2_876_860_800);
}

#[test]
fn renewal_is_due_before_the_end() {
    let day = Duration::from_secs(24 * 3600);
    let identity = Identity::default();
    let year = Certificate { not_before: UNIX_EPOCH, not_after: UNIX_EPOCH + 365 * day, identity };
    assert!(!year.is_due(UNIX_EPOCH + 350 * day));
    assert!(year.is_due(UNIX_EPOCH + 352 * day));
    assert!(year.left(UNIX_EPOCH + 366 * day).is_none() && year.is_due(UNIX_EPOCH + 366 * day));
    let short = Certificate { not_after: UNIX_EPOCH + day, ..year };
    assert!(!short.is_due(UNIX_EPOCH + day / 2), "one of a day is not always due");
    assert!(short.is_due(UNIX_EPOCH + day * 9 / 10));
}

#[test]
fn bytes_of_a_stranger_are_no_certificate() {
    let key = KeyPair::generate().unwrap();
    let whole =
        CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec();
    for cut in 0..whole.len() {
        assert_eq!(Certificate::read(&whole[..cut].into()), None, "{cut}");
    }
    // Any one byte may be anything: no panic, whatever comes out.
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bent = whole.clone();
            bent[at] ^= flip;
            drop(Certificate::read(&bent.into()));
        }
    }
}
