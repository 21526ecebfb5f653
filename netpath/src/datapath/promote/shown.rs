//! What commands are shown of promoted flows: a copy that the thread (`ops/promotion/`) publishes, so that a reader waits for none of its requests.

use crate::datapath::connection::{Direction, Transport};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(crate) const MOST_SHOWN: usize = 256;
/// Bytes of a reason, which names a rule of others.
const LONGEST: usize = 512;
pub(crate) const STARTED: &str = "the agent has just started";
pub(crate) const CHANGED: &str = "rules, routes or links of this host have just changed";

/// One of its directions, as packets arrive.
pub type FlowId = (Transport, Direction);

/// What the promotion of flows does, as of a moment ago.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Promotions {
    /// Why no flow is carried, whichever it is.
    pub why_not: Option<String>,
    /// By their original direction.
    pub carried: Vec<FlowId>,
    /// The latest, by the direction in which each was seen, with the reason.
    pub refused: Vec<(FlowId, String)>,
}

impl Promotions {
    fn nothing(why_not: impl Into<String>) -> Self {
        Self { why_not: Some(why_not.into()), ..Self::default() }
    }
}

type Published = Mutex<Promotions>;

/// Of the thread of this process, or why it has none.
static PUBLISHED: Mutex<Option<Result<Weak<Published>, String>>> = Mutex::new(None);

/// Held by the thread: when it ends, nothing is published any more.
pub(crate) struct Publisher(Arc<Published>);

impl Publisher {
    pub(crate) fn new() -> Self {
        let published = Arc::new(Mutex::new(Promotions::nothing(STARTED)));
        *locked(&PUBLISHED) = Some(Ok(Arc::downgrade(&published)));
        Self(published)
    }

    pub(crate) fn publish(&self, mut promotions: Promotions) {
        promotions.refused.iter_mut().for_each(|(_, why)| shorten(why));
        *locked(&self.0) = promotions;
    }
}

/// There is no thread.
pub(crate) fn failed(why: String) {
    *locked(&PUBLISHED) = Some(Err(why));
}

/// What the thread of this process has published last.
pub fn shown() -> Promotions {
    match &*locked(&PUBLISHED) {
        None => Promotions::nothing("the agent has not begun to carry flows"),
        Some(Err(why)) => Promotions::nothing(why),
        Some(Ok(published)) => published.upgrade().map_or_else(
            || Promotions::nothing("the promotion of flows has ended; the log of the agent says why"),
            |published| locked(&published).clone(),
        ),
    }
}

fn shorten(why: &mut String) {
    if why.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| why.is_char_boundary(*at));
        why.truncate(end.unwrap_or(0));
        why.push('…');
    }
}

/// Values are replaced as a whole, so that of a thread that has panicked is one as well.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::MOST_CARRIED;
    use super::*;

    #[test]
    fn what_is_published_is_shown_until_the_thread_ends() {
        let end = |text: &str| text.parse().expect("an address");
        let flow = (Transport::Udp, Direction::of(end("[fd00::9]:4000"), end("[fd00::1]:53")));
        let publisher = Publisher::new();
        assert_eq!(Some(STARTED), shown().why_not.as_deref());
        let long = "ü".repeat(LONGEST);
        publisher.publish(Promotions { carried: vec![flow], refused: vec![(flow, long)], why_not: None });
        let text = serde_json::to_string(&shown()).expect("JSON");
        let read: Promotions = serde_json::from_str(&text).expect("its own text");
        assert_eq!((vec![flow], None), (read.carried.clone(), read.why_not.clone()));
        assert_eq!(LONGEST + "…".len(), read.refused[0].1.len());
        // The agent's answer has a limit (`state/agent_socket.rs`).
        let widest = (
            Transport::Udp,
            Direction::of(
                end("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
                end("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ),
        );
        let most = Promotions {
            why_not: None,
            carried: vec![widest; MOST_CARRIED],
            refused: vec![(widest, "\u{1}".repeat(LONGEST)); MOST_SHOWN],
        };
        let bytes = serde_json::to_vec(&most).expect("JSON").len();
        assert!(bytes < 1_000_000, "{bytes}");
        drop(publisher);
        assert!(shown().why_not.is_some_and(|why| why.contains("has ended")));
        assert!(shown().carried.is_empty());
        failed("no bpf()".into());
        assert_eq!(Some("no bpf()"), shown().why_not.as_deref());
    }
}
