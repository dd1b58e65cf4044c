//! Why a server has, or should have, a page: what routing made of weights, replicas, heat and earlier lists.

use super::RouteStep;

/// Says of each step of a route why the page is or should be there. `replicas` is how many homes every page has.
pub(crate) fn explain(route: &mut [RouteStep], replicas: usize) {
    let mut homes = 0;
    for step in route {
        homes += usize::from(step.home);
        step.why = reason(step, homes <= replicas);
    }
}

/// The reason for one step; `usual` if it is among as many homes as every page has.
fn reason(step: &RouteStep, usual: bool) -> Option<&'static str> {
    let why = match (step.home, step.asked, step.found) {
        (true, _, _) if usual => "home",
        (true, _, _) => "home, because the page is hot",
        (false, Some(_), _) if step.state == "draining" => "drains: read, not written to",
        (false, Some(_), _) => "was a home before the members changed",
        (false, None, Some(true)) => "left over from other members, or from when it was hot",
        (false, None, _) => return None,
    };
    Some(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(home: bool, asked: Option<usize>, found: bool, state: &'static str) -> RouteStep {
        RouteStep { home, asked, found: Some(found), state, ..RouteStep::default() }
    }

    #[test]
    fn each_place_has_its_reason() {
        let mut route = [
            step(false, Some(1), true, "draining"),
            step(true, Some(2), true, "ready"),
            step(true, Some(3), false, "ready"),
            step(false, Some(4), true, "ready"),
            step(false, None, true, "ready"),
            step(false, None, false, "ready"),
        ];
        explain(&mut route, 1);
        let whys: Vec<_> = route.iter().map(|step| step.why.unwrap_or_default()).collect();
        let words = ["drains", "home", "hot", "before", "left over", ""];
        for (why, word) in whys.iter().zip(words) {
            assert!(why.contains(word), "{why:?} and {word:?}");
        }
        assert_eq!(whys[5], "");
        explain(&mut route, 2);
        assert_eq!(route[2].why, Some("home"));
    }
}
