//! The list that a configuration names: it never changes.

use crate::{Member, MemberList, NextList, Source};

/// A list that never changes.
#[derive(Clone, Debug)]
pub struct Fixed {
    list: Option<MemberList>,
}

impl Fixed {
    /// A source of these members.
    #[must_use]
    pub fn new(members: Vec<Member>) -> Self {
        Self { list: Some(MemberList::new(1, members)) }
    }
}

impl Source for Fixed {
    fn next(&mut self) -> NextList<'_> {
        Box::pin(async {
            match self.list.take() {
                Some(list) => Ok(list),
                None => std::future::pending().await,
            }
        })
    }

    fn refresh(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_one_list_and_no_other() {
        let mut source = Fixed::new(vec![Member::new("a", "h", 1, 1)]);
        assert_eq!(source.next().await.unwrap().members.len(), 1);
        source.refresh();
        let second = tokio::time::timeout(std::time::Duration::from_millis(1), source.next()).await;
        assert!(second.is_err());
    }
}
