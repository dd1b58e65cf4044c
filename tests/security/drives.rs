//! Tenants' pages on drives: whose they are, how many there may be, and what becomes of that over a restart.

use crate::estate::{Estate, Guest, PATIENCE, of, tenant};
use memkv_core::SpaceId;
use memkv_credentials::{Quotas, Tenant};
use memkv_proto::v1;
use memkv_tests::daemon::Setup;
use memkv_tests::pages::page;
use memkv_tests::wait_for;
use memkv_tests::wire::DataConn;
use memkv_transport::frame::Code;

const LEN: usize = 64 << 10;
const QUOTA: u64 = 8 << 20;
/// Pages of the tenant without a quota: more than the other one's quota on drives, and well within the memory.
const OF_B: u32 = 400;

fn usage(estate: &Estate, name: &str) -> v1::TenantStatus {
    let operator = estate.operator();
    let request = operator.request("/memkv.v1.Admin/ListTenants", v1::ListTenantsRequest {});
    let tenants = operator.block_on(operator.admin().list_tenants(request)).unwrap().into_inner().tenants;
    tenants.into_iter().find(|tenant| tenant.name == name).unwrap()
}

fn key(of: u8, number: u32) -> Vec<u8> {
    [&[of][..], &number.to_le_bytes()].concat()
}

/// Stores a page, if need be after a while.
fn store(data: &mut DataConn, space: SpaceId, key: &[u8]) {
    let bytes = page(key, LEN);
    wait_for("there is room", PATIENCE, || match data.put(space, key, &bytes).unwrap() {
        Code::Ok => Some(()),
        Code::Busy => None,
        code => panic!("{code:?}"),
    })
    .unwrap();
}

fn there(data: &mut DataConn, space: SpaceId, of: u8, count: u32) -> usize {
    (0..count).filter(|number| data.exists(space, &[&key(of, *number)]).unwrap()[0]).count()
}

#[test]
fn a_tenant_over_its_bytes_on_drives_loses_its_own_pages_and_nobody_elses() {
    let drive = tempfile::tempdir().unwrap();
    let args = [
        format!("--nvme-paths={}:256MiB", drive.path().join("drive").display()),
        "--nvme-segment=4MiB".to_owned(),
        // Every page goes to the drive, so what is there does not depend on how fast memory fills up and the drive is.
        "--nvme-mode=write-through".to_owned(),
    ];
    let quotas = Quotas { dram_bytes: Some(4 << 20), nvme_bytes: Some(QUOTA), ..Quotas::default() };
    let credentials = of([Tenant { quotas, ..tenant("a", 1) }, tenant("b", 2)]);
    let mut estate = Estate::with_setup(&credentials, Setup { args: args.to_vec(), ..Setup::default() });
    let (spaces, of_b) = {
        let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
        let spaces = [a.control.open_space("s").unwrap(), b.control.open_space("s").unwrap()];
        for number in 0..OF_B {
            store(&mut b.data, spaces[1], &key(b'b', number));
        }
        let of_b = there(&mut b.data, spaces[1], b'b', OF_B);
        assert_eq!(of_b, OF_B as usize, "memory holds them all");
        wait_for("its pages are on the drive", PATIENCE, || {
            (usage(&estate, "b").nvme_bytes > QUOTA).then_some(())
        })
        .unwrap();
        for number in 0..600 {
            store(&mut a.data, spaces[0], &key(b'a', number));
            if number % 50 == 0 {
                let now = usage(&estate, "a");
                assert!(now.nvme_bytes <= QUOTA && now.dram_bytes <= 4 << 20, "{now:?}");
            }
        }
        let now = wait_for("some of its pages are on the drive", PATIENCE, || {
            Some(usage(&estate, "a")).filter(|now| now.nvme_bytes > 0)
        })
        .unwrap();
        assert!(now.nvme_bytes_max == QUOTA && now.evicted_pages > 0, "{now:?}");
        let kept = there(&mut a.data, spaces[0], b'a', 600);
        assert!((1..=192).contains(&kept), "{kept} pages of 64 KiB in 12 MiB");
        assert_eq!(there(&mut b.data, spaces[1], b'b', OF_B), of_b, "the other tenant's pages stay");
        (spaces, of_b)
    };
    // From the drive they come back as whose they were, and count as before.
    estate.daemon.stop().unwrap();
    estate.daemon.restart().unwrap();
    let (mut a, mut b) = (Guest::of(&estate, "a", 1), Guest::of(&estate, "b", 2));
    let (again_a, again_b) = (usage(&estate, "a"), usage(&estate, "b"));
    assert!(again_a.nvme_bytes > 0 && again_a.nvme_bytes <= QUOTA, "{again_a:?}");
    assert!(again_b.nvme_bytes > QUOTA, "{again_b:?}");
    assert_eq!(a.control.open_space("s").unwrap(), spaces[0]);
    assert_eq!(there(&mut a.data, spaces[1], b'b', OF_B), 0, "nothing of the other's is to be seen");
    assert!(there(&mut b.data, spaces[1], b'b', OF_B) > 0 && of_b > 0);
    let found = (0..600).find(|n| a.data.exists(spaces[0], &[&key(b'a', *n)]).unwrap()[0]).unwrap();
    let own = key(b'a', found);
    assert_eq!(a.data.get(spaces[0], &own, LEN as u32).unwrap(), (Code::Ok, page(&own, LEN)));
    assert_eq!(b.data.get(spaces[0], &own, LEN as u32).unwrap().0, Code::Miss);
}
