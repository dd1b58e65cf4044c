//! The client processes of a load, as the coordinator sees them.

use super::orders::{Answer, Job, Order};
use anyhow::{Context as _, bail};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// All client processes; they are killed with this handle.
pub(crate) struct Crew {
    members: Vec<Member>,
}

struct Member {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Crew {
    /// Starts this program again, once a job, and waits until all are connected.
    ///
    /// # Errors
    ///
    /// If one cannot start or connect.
    pub(crate) fn start(jobs: &[Job]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut members = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut command = Command::new(&program);
            command.arg("worker");
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let orders = child.stdin.take().context("write to a client process")?;
            let answers = BufReader::new(child.stdout.take().context("read from a client process")?);
            let mut member = Member { child, orders, answers };
            member.tell(&serde_json::to_string(job)?)?;
            members.push(member);
        }
        let mut crew = Self { members };
        crew.answers()?;
        Ok(crew)
    }

    /// Gives all the same order, and waits for all answers.
    ///
    /// # Errors
    ///
    /// If one failed; its reason is the text.
    pub(crate) fn all(&mut self, order: &Order) -> anyhow::Result<Vec<Answer>> {
        self.each(|_| order.clone())
    }

    /// Gives each its order, and waits for all answers.
    ///
    /// # Errors
    ///
    /// As [`all`](Self::all).
    pub(crate) fn each(&mut self, order: impl Fn(usize) -> Order) -> anyhow::Result<Vec<Answer>> {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.tell(&serde_json::to_string(&order(index))?)?;
        }
        self.answers()
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Answer>> {
        self.members.iter_mut().map(Member::answer).collect()
    }
}

impl Member {
    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.orders, "{line}").context("write to a client process")
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("read from a client process")? == 0 {
            bail!("a client process ended: {:?}", self.child.wait());
        }
        let answer: Answer = serde_json::from_str(&line).context("understand a client process")?;
        match answer.error {
            Some(error) => bail!("a client process failed: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about either failure.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
