//! Answers of name servers and of etcd, which tell a client where its servers are.

use crate::bytes::Bytes;
use memkv_discovery::{Member, MemberList, check_id, fuzzing};

/// The first byte chooses who answers. With etcd the next ones say how long its first answer and each change are.
pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    if bytes.flip() {
        let mut answers = Vec::new();
        while !bytes.is_empty() && answers.len() < 8 {
            let len = usize::from(u16::from_le_bytes(bytes.array())) % 1024;
            answers.push(bytes.take(len));
        }
        let Some((range, changes)) = answers.split_first() else { return };
        if let Some(list) = fuzzing::etcd(range, changes) {
            judge(&list);
        }
    } else if let Some((addresses, services)) = fuzzing::dns(bytes.rest()) {
        for members in [addresses, services] {
            judge(&MemberList::new(1, members));
        }
    }
}

/// What routing may rely on, whoever said it.
fn judge(list: &MemberList) {
    for member in &list.members {
        assert!(check_id(&member.id).is_ok(), "the id {:?} is none", member.id);
        assert!(member.port > 0 && !member.host.is_empty(), "a member has an address");
        assert!(member.weight <= 1_000_000, "a weight is bounded");
        assert_eq!(list.find(&member.id), Some(member), "ids are in order, each once");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let piece = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes()[..], bytes].concat();
    let record = |id: &str| Member::new(id, "10.0.0.1", 9900, 100).to_record();
    let range = range(&[("a", record("a")), ("b", record("b")), ("c", b"{}".to_vec())]);
    let put = watch(0, "d", &record("d"));
    let delete = watch(1, "a", &[]);
    vec![
        [&[1][..], &piece(&range), &piece(&put), &piece(&delete)].concat(),
        [&[1][..], &piece(&range)].concat(),
        [&[0][..], &addresses()].concat(),
        [&[0][..], &services()].concat(),
        [&[0][..], &long_twins()].concat(),
    ]
}

/// A field of a message: bytes with a number in front.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len();
    let mut out = vec![number << 3 | 2];
    // A length of two bytes of seven bits is enough here.
    if len < 128 {
        out.push(u8::try_from(len).unwrap_or(0));
    } else {
        out.extend([u8::try_from(len & 0x7f).unwrap_or(0) | 0x80, u8::try_from(len >> 7).unwrap_or(0)]);
    }
    out.extend_from_slice(bytes);
    out
}

/// `KeyValue`: key 1, mod_revision 3, value 5.
fn key_value(id: &str, value: &[u8]) -> Vec<u8> {
    [field(1, format!("p/members/{id}").as_bytes()), vec![3 << 3, 7], field(5, value)].concat()
}

/// `RangeResponse`: header 1 with revision 3, kvs 2.
fn range(records: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let kvs = records.iter().flat_map(|(id, value)| field(2, &key_value(id, value)));
    field(1, &[3 << 3, 9]).into_iter().chain(kvs).collect()
}

/// `WatchResponse`: events 11 with type 1 and kv 2.
fn watch(kind: u8, id: &str, value: &[u8]) -> Vec<u8> {
    field(11, &[vec![1 << 3, kind], field(2, &key_value(id, value))].concat())
}

/// An answer with one question, `kv.x`, and `count` records.
fn answer(kind: u8, records: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![0, 1, 0x81, 0x80, 0, 1, 0, u8::try_from(records.len()).unwrap_or(0), 0, 0, 0, 0];
    out.extend(*b"\x02kv\x01x\x00");
    out.extend([0, kind, 0, 1]);
    for data in records {
        // The question's name, its kind, the class, a minute, and the data.
        out.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60]);
        out.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(data);
    }
    out
}

fn addresses() -> Vec<u8> {
    answer(1, &[vec![10, 0, 0, 1], vec![10, 0, 0, 2]])
}

fn services() -> Vec<u8> {
    let service = |port: u8, target: &[u8]| [&[0, 1, 0, 5, 38, port][..], target].concat();
    answer(
        33,
        &[service(1, b"\x02n1\x01x\x00"), service(2, b"\x02n1\x01x\x00"), service(3, b"\x02n2\xc0\x0f")],
    )
}

/// Two services of one host, whose name leaves no room for a port in an id.
fn long_twins() -> Vec<u8> {
    let label = |letter: u8| [&[63][..], &[letter; 63]].concat();
    let name = [label(b'a'), label(b'b'), vec![0]].concat();
    let service = |port: u8| [&[0, 1, 0, 5, 38, port][..], &name].concat();
    answer(33, &[service(1), service(2)])
}
