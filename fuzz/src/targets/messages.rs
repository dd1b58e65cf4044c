//! Messages of gRPC: the session's and those of the services, and what makes strict types of them.

use crate::bytes::Bytes;
use memkv_core::{PageMeta, SpaceDescription};
use memkv_proto::v1::client_message::Message as FromClient;
use memkv_proto::v1::server_message::Message as ToClient;
use memkv_proto::{keys_from_wire, space_id_from_wire, v1};
use memkv_server::fuzzing;
use prost::Message;

/// Reads a message; one that was understood is understood again as it was.
fn read<M: Message + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    // Numbers that are no numbers are not equal to themselves; there are none in what clients send.
    assert!(again.is_ok_and(|again| again == message), "a message reads as it was written");
    Some(message)
}

/// The first byte chooses the message, and six bytes a place in a region.
pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let which = bytes.byte();
    let (offset, len) = (u64::from(bytes.u32()), u32::from(u16::from_le_bytes(bytes.array())));
    let bytes = bytes.rest();
    match which % 8 {
        0 => match read::<v1::ClientMessage>(bytes).and_then(|message| message.message) {
            Some(FromClient::Hello(hello)) => {
                let _fine = fuzzing::read_hello(&hello);
            }
            Some(FromClient::RegisterRegion(region)) => {
                let _inside = fuzzing::read_region(region, offset << 12, len);
            }
            _ => {}
        },
        1 => {
            if let Some(ToClient::Challenge(challenge)) =
                read::<v1::ServerMessage>(bytes).and_then(|message| message.message)
            {
                let _known = challenge.node_id.len();
            }
        }
        2 => {
            let space = read::<v1::OpenSpaceRequest>(bytes).and_then(|request| request.space);
            if let Some(Ok(space)) = space.map(SpaceDescription::try_from) {
                let again = SpaceDescription::try_from(v1::Space::from(&space));
                assert_eq!(again, Ok(space), "a description reads as it was written");
            }
        }
        3 => {
            if let Some(request) = read::<v1::GetRequest>(bytes) {
                let _space = space_id_from_wire(&request.space_id);
                let _keys = keys_from_wire(&request.keys);
            }
        }
        4 => {
            let _request = read::<v1::PutRequest>(bytes);
        }
        5 => {
            if let Some(record) = read::<v1::PageRecord>(bytes)
                && let Ok(meta) = PageMeta::try_from(record)
            {
                assert_eq!(v1::PageRecord::from(meta), record, "a record reads as it was written");
            }
        }
        6 => {
            if let Some(request) = read::<v1::DeleteRequest>(bytes) {
                let _keys = keys_from_wire(&request.keys);
            }
        }
        _ => {
            let _request = read::<v1::ListKeysRequest>(bytes);
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let with = |which: u8, message: Vec<u8>| [&[which, 1, 0, 0, 0, 16, 0], &message[..]].concat();
    let client = |message| v1::ClientMessage { message: Some(message) }.encode_to_vec();
    let hello = v1::Hello {
        protocol_min: 1,
        protocol_max: 1,
        client_nonce: vec![1; 32],
        client_name: "fuzz".to_owned(),
        ..v1::Hello::default()
    };
    let region = v1::RegisterRegion {
        region: 1,
        bytes: 3 << 20,
        address: 1 << 40,
        part_bytes: 2 << 20,
        nics: vec![v1::RegionKeys { keys: vec![5, 6] }],
    };
    let space = v1::Space::from(&SpaceDescription::named("default").expect("the name is short"));
    let challenge = v1::Challenge { protocol: 1, node_id: "a".to_owned(), ..v1::Challenge::default() };
    let challenge = v1::ServerMessage { message: Some(ToClient::Challenge(challenge)) };
    let get =
        v1::GetRequest { space_id: vec![1; 16], keys: vec![b"k".to_vec()], ..v1::GetRequest::default() };
    let delete = v1::DeleteRequest { space_id: vec![1; 16], keys: vec![b"k".to_vec()] };
    vec![
        with(0, client(FromClient::Hello(hello))),
        with(0, client(FromClient::RegisterRegion(region))),
        with(1, challenge.encode_to_vec()),
        with(2, v1::OpenSpaceRequest { space: Some(space) }.encode_to_vec()),
        with(3, get.encode_to_vec()),
        with(5, v1::PageRecord { len: 4096, checksum: 7, codec: 0, flags: 0 }.encode_to_vec()),
        with(6, delete.encode_to_vec()),
    ]
}
