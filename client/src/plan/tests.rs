use super::*;
use crate::members::tests::{Cluster, digests};

const SPACE: SpaceId = SpaceId([1; 16]);

#[test]
fn one_server_is_found_without_digests_unless_pages_move() {
    let members = Cluster::new(1).members(1);
    for (op, is_needed) in
        [(Op::Exists, false), (Op::Touch, false), (Op::Delete, false), (Op::Get, true), (Op::Put, true)]
    {
        let mut scratch = Scratch::default();
        scratch.plan(&members, op, SPACE, &&["a", "b"][..]).unwrap();
        assert_eq!((&scratch.order[..], &scratch.ends[..]), (&[0, 1][..], &[2][..]));
        assert_eq!(scratch.digests.iter().all(|&digest| digest != 0), is_needed, "{op:?}");
    }
}

#[test]
fn every_page_is_in_its_owners_group_in_order() {
    let cluster = Cluster::new(3);
    let members = cluster.members(1);
    assert!(members.is_simple());
    let keys: Vec<String> = (0..500).map(|i| format!("key-{i}")).collect();
    let mut scratch = Scratch::default();
    for _ in 0..2 {
        scratch.plan(&members, Op::Get, SPACE, &&keys[..]).unwrap();
        let mut begin = 0;
        let mut seen = 0;
        for (server, &end) in scratch.ends.iter().enumerate() {
            let group = &scratch.order[begin..end];
            assert!(group.is_sorted() && !group.is_empty());
            for &page in group {
                let digest = scratch.digests[page as usize];
                assert_eq!(route::owner(&members.nodes, digest), Some(server));
            }
            seen += group.len();
            begin = end;
        }
        assert_eq!(seen, 500);
    }
}

#[test]
fn without_weight_nothing_is_owned() {
    let members = Cluster::new(2).with_weights(&[0, 0], 1);
    let mut scratch = Scratch::default();
    scratch.plan(&members, Op::Get, SPACE, &&["k"][..]).unwrap();
    assert!(scratch.order.is_empty());
    let bad = scratch.plan(&members, Op::Get, SPACE, &&["k", ""][..]).unwrap_err();
    assert_eq!(bad.index, 1);
}

#[test]
fn a_put_goes_to_all_homes_and_counts_where_it_succeeded_first() {
    let members = Cluster::new(4).members(3);
    let keys: Vec<String> = (0..100).map(|i| format!("key-{i}")).collect();
    let mut scratch = Scratch::default();
    scratch.plan(&members, Op::Get, SPACE, &&keys[..]).unwrap();
    assert_eq!(scratch.plan_all(&members, Op::Put), 3);
    assert_eq!((scratch.order.len(), scratch.digests.len(), scratch.places.len()), (300, 300, 300));
    let mut begin = 0;
    for (server, &end) in scratch.ends.iter().enumerate() {
        assert!(scratch.order[begin..end].is_sorted());
        for &page in &scratch.order[begin..end] {
            let (time, page) = (page as usize / 100, page as usize % 100);
            assert_eq!(route::order(&members.nodes, scratch.digests[page])[time], server);
        }
        begin = end;
    }
    use PageOutcome::{Busy, Exists, Miss, Stored, TimedOut, Unavailable};
    let cases = [
        ([Stored, Unavailable, Busy], Stored),
        ([Unavailable, Exists, Stored], Exists),
        ([TimedOut, Busy, Unavailable], Busy),
        ([TimedOut, Unavailable, Unavailable], TimedOut),
        ([Miss, Unavailable, Miss], Miss),
    ];
    for (places, expected) in cases {
        for (time, outcome) in places.into_iter().enumerate() {
            scratch.places[time * 100 + 7] = outcome;
        }
        let mut outcomes = vec![Unavailable; 100];
        scratch.merge_all(&mut outcomes);
        assert_eq!(outcomes[7], expected, "{places:?}");
    }
}

/// Plays a read of one page; `says` is what each server answers, or `None` if it is not available. Returns the outcome
/// and who was asked, in order.
fn play(
    members: &Members,
    says: impl Fn(usize) -> Option<PageOutcome>,
    scratch: &mut Scratch,
) -> (PageOutcome, Vec<usize>) {
    scratch.plan(members, Op::Get, SPACE, &&["page"][..]).unwrap();
    scratch.plan_reads(members, 0);
    for (server, available) in scratch.available.iter_mut().enumerate() {
        *available = says(server).is_some();
    }
    let (mut outcomes, mut asked) = ([PageOutcome::Busy], Vec::new());
    loop {
        let (pages, _) = scratch.next_round(&mut outcomes);
        if pages == 0 {
            return (outcomes[0], asked);
        }
        assert_eq!(outcomes[0], PageOutcome::Unavailable, "as every op begins");
        let server = scratch.ends.iter().position(|&end| end == 1).unwrap();
        asked.push(server);
        outcomes[0] = says(server).unwrap();
        scratch.end_round(&mut outcomes, members);
    }
}

#[test]
fn a_read_asks_one_after_another_until_the_page_is_there() {
    use PageOutcome::{Corrupt, Hit, Miss, SizeMismatch, TimedOut};
    let members = Cluster::new(5).members(3);
    let mut scratch = Scratch::default();
    let digest = key_digest(SPACE, Key::new(b"page").unwrap());
    let order = route::order(&members.nodes, digest);
    let at = |server: usize| order.iter().position(|&other| other == server).unwrap();
    let says = |list: [Option<PageOutcome>; 3]| move |server: usize| list.get(at(server)).copied().flatten();

    let (outcome, asked) = play(&members, says([Some(Hit), Some(Hit), Some(Hit)]), &mut scratch);
    assert_eq!((outcome, asked), (Hit, order[..1].to_vec()));
    assert_eq!(scratch.lookups[0].missed, 0);

    let (outcome, asked) = play(&members, says([Some(Miss), Some(TimedOut), Some(Hit)]), &mut scratch);
    assert_eq!((outcome, asked), (Hit, order[..3].to_vec()));
    assert_eq!(scratch.lookups[0].missed, 0b001, "who was silent may have it");

    let (outcome, asked) = play(&members, says([None, Some(Corrupt), Some(Hit)]), &mut scratch);
    assert_eq!((outcome, asked), (Hit, order[1..3].to_vec()));
    assert_eq!(scratch.lookups[0].missed, 0b010);

    let (outcome, _) = play(&members, says([Some(Corrupt), Some(Miss), Some(TimedOut)]), &mut scratch);
    assert_eq!(outcome, Corrupt, "what says most");
    let (outcome, asked) = play(&members, says([Some(SizeMismatch), Some(Hit), Some(Hit)]), &mut scratch);
    assert_eq!((outcome, asked.len()), (SizeMismatch, 1));
    let (outcome, asked) = play(&members, says([None, None, None]), &mut scratch);
    assert_eq!((outcome, asked.len()), (PageOutcome::Busy, 0), "as the op left it");
}

#[test]
fn who_comes_back_while_another_is_asked_is_asked_too() {
    let members = Cluster::new(5).members(3);
    let mut scratch = Scratch::default();
    scratch.plan(&members, Op::Get, SPACE, &&["page"][..]).unwrap();
    scratch.plan_reads(&members, 0);
    let list = scratch.lookups[0].candidates.as_slice().to_vec();
    let mut outcomes = [PageOutcome::Busy];
    let mut asked = |available: [bool; 3], says: PageOutcome, more: usize| {
        for (server, open) in scratch.available.iter_mut().enumerate() {
            *open = list.iter().position(|&place| place as usize == server).is_some_and(|at| available[at]);
        }
        let round = scratch.next_round(&mut outcomes);
        if round.0 == 0 {
            return (outcomes[0], None);
        }
        assert_eq!(round, (1, more));
        outcomes[0] = says;
        scratch.end_round(&mut outcomes, &members);
        (outcomes[0], Some(scratch.lookups[0].asked))
    };
    // The first is away; the second goes away while it is asked; the first is there again.
    assert_eq!(asked([false, true, false], PageOutcome::Unavailable, 0), (PageOutcome::Unavailable, Some(2)));
    assert_eq!(asked([true, true, true], PageOutcome::Miss, 1), (PageOutcome::Miss, Some(1)));
    assert_eq!(asked([true, true, true], PageOutcome::TimedOut, 0), (PageOutcome::Miss, Some(3)));
    assert_eq!(asked([true, true, true], PageOutcome::Hit, 0), (PageOutcome::Miss, None), "nobody twice");
    assert_eq!(scratch.lookups[0].missed, 0b001);
}

#[test]
fn hot_pages_are_read_from_all_their_homes() {
    let digest = key_digest(SPACE, Key::new(b"page").unwrap());
    let members = Cluster::new(4).members(1).with_hot(crate::hot::tests::pages(&[(digest, 3)]));
    let order = route::order(&members.nodes, digest);
    let mut ranks = Ranks::default();
    for turn in 0..9 {
        let mut candidates = members.candidates(digest, &mut ranks);
        assert_eq!(candidates.hot().map(<[u32]>::len), Some(3));
        candidates.begin_with(turn % 3);
        let list: Vec<usize> = candidates.as_slice().iter().map(|&place| place as usize).collect();
        let mut expected = order[..3].to_vec();
        expected.rotate_left(turn % 3);
        assert_eq!(list, expected);
        assert!((0..3).all(|at| candidates.is_home(at)));
    }
    for other in digests(20) {
        let candidates = members.candidates(other, &mut ranks);
        assert_eq!((candidates.as_slice().len(), candidates.hot()), (1, None));
    }
}
