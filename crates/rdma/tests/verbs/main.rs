//! One suite over every implementation of verbs: the simulated network always, real devices where there are two ports.
//!
//! Without real devices their tests are reported as ignored, with the reason. `MEMKV_TEST_RDMA` changes that:
//! `required` makes it a failure, `elsewhere` leaves those tests out, because another run has them.

#![allow(unsafe_code, reason = "registers and posts memory of its own")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod limits;
mod side;
mod suite;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use memkv_rdma::fake::Fabric;
use memkv_rdma::{Place, Verbs, choose, system};
use std::process::ExitCode;
use std::sync::Arc;

/// An implementation, and two places of it that reach each other.
type Ground = (Arc<dyn Verbs>, [Place; 2]);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Some tests count what the whole process has open.
    arguments.test_threads = Some(1);
    let fabric: Arc<dyn Verbs> = Arc::new(Fabric::new(2));
    let places = two_places(fabric.as_ref()).expect("the simulated network has two");
    let mut trials = trials("fake", &(fabric, places));
    let wish = std::env::var("MEMKV_TEST_RDMA").unwrap_or_default();
    match (real(), wish.as_str()) {
        (Ok(ground), _) => {
            trials.extend(self::trials("verbs", &ground));
            trials.extend(limits::trials(&ground));
        }
        (Err(_), "elsewhere") => {}
        (Err(reason), "required") => {
            eprintln!("error: no two RDMA ports: {reason}");
            return ExitCode::FAILURE;
        }
        (Err(reason), _) => trials.extend(ignored(&reason)),
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The real verbs with two ports, or why not.
fn real() -> Result<Ground, String> {
    let verbs = system().map_err(|error| error.to_string())?;
    let places = two_places(verbs.as_ref())?;
    Ok((verbs, places))
}

fn two_places(verbs: &dyn Verbs) -> Result<[Place; 2], String> {
    let nics = verbs.nics().map_err(|error| error.to_string())?;
    let places = choose(&nics, &[], None).map_err(|error| error.to_string())?;
    places.into_iter().take(2).collect::<Vec<_>>().try_into().map_err(|_| "only one RDMA port".to_owned())
}

fn trials(name: &str, ground: &Ground) -> Vec<Trial> {
    let trial = |&(test, run): &(&str, suite::Test)| {
        let (verbs, places) = ground.clone();
        Trial::test(format!("{name}::{test}"), move || -> Result<(), Failed> {
            run(verbs.as_ref(), &places);
            Ok(())
        })
    };
    suite::ALL.iter().map(trial).collect()
}

fn ignored(reason: &str) -> Vec<Trial> {
    let trial = |&(test, _): &(&str, suite::Test)| {
        let reason = reason.to_owned();
        Trial::ignorable_test(format!("verbs::{test}"), move || Ok(Completion::ignored_with(reason)))
    };
    suite::ALL.iter().map(trial).collect()
}
