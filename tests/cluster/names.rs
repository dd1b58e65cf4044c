//! A name server on a loopback port, whose records a test changes as it goes.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers questions about records that it was given; for everything else there are none.
pub(crate) struct Names {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    records: Mutex<Vec<Record>>,
    failing: AtomicBool,
    questions: AtomicU64,
    ended: AtomicBool,
}

impl Names {
    /// Starts one without records.
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let addr = socket.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let thread = Some(std::thread::spawn(move || serve(&socket, &serving)));
        Self { addr, shared, thread }
    }

    /// What a configuration says to ask it.
    pub(crate) fn location(&self, of: &str) -> String {
        format!("{of}?server={}", self.addr)
    }

    /// From now on there are these records.
    pub(crate) fn set(&self, records: Vec<Record>) {
        *self.shared.records.lock().unwrap() = records;
    }

    /// Whether every answer is that it failed.
    pub(crate) fn fail(&self, failing: bool) {
        self.shared.failing.store(failing, Ordering::SeqCst);
    }

    /// Questions answered so far.
    pub(crate) fn questions(&self) -> u64 {
        self.shared.questions.load(Ordering::SeqCst)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// An address record.
pub(crate) fn a(name: &str, address: [u8; 4], ttl: u32) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(A(address.into())))
}

/// A service record.
pub(crate) fn srv(name: &str, (priority, weight, port): (u16, u16, u16), target: &str, ttl: u32) -> Record {
    let data = SRV::new(priority, weight, port, Name::from_ascii(target).unwrap());
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::SRV(data))
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 4096];
    while !shared.ended.load(Ordering::SeqCst) {
        let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
        let Ok(question) = Message::from_vec(&buffer[..len]) else { continue };
        let answer = answer(question, shared).to_vec().unwrap();
        shared.questions.fetch_add(1, Ordering::SeqCst);
        socket.send_to(&answer, peer).ok();
    }
}

fn answer(question: Message, shared: &Shared) -> Message {
    let mut answer = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = true;
    for query in &question.queries {
        answer.add_query(query.clone());
        let records = shared.records.lock().unwrap();
        let wanted = |record: &&Record| {
            let same = record.name.to_lowercase() == query.name().to_lowercase();
            same && (record.record_type() == query.query_type() || query.query_type() == RecordType::ANY)
        };
        for record in records.iter().filter(wanted) {
            answer.add_answer(record.clone());
        }
        let known = records.iter().any(|record| record.name.to_lowercase() == query.name().to_lowercase());
        if !known {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
    }
    if shared.failing.load(Ordering::SeqCst) {
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::ServFail;
    }
    answer
}
