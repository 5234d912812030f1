//! One member of the ring.

use std::fmt;

use crate::token::{Token, instance_tokens};

/// Where an instance is in its life. Names and numbers are those of Tempo's ring pages and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum InstanceState {
    /// Takes writes and answers reads.
    Active = 0,
    /// Stopping: answers reads, takes no writes.
    Leaving = 1,
    /// Started, has no tokens yet.
    Pending = 2,
    /// Has tokens, replays its log.
    Joining = 3,
    /// Gone; kept until everyone has heard of it.
    Left = 4,
}

impl InstanceState {
    /// The state of a number on the wire; None for a number that means nothing.
    pub fn from_i32(value: i32) -> Option<Self> {
        [Self::Active, Self::Leaving, Self::Pending, Self::Joining, Self::Left].into_iter().find(|state| *state as i32 == value)
    }

    /// The name on ring pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Leaving => "LEAVING",
            Self::Pending => "PENDING",
            Self::Joining => "JOINING",
            Self::Left => "LEFT",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One process in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Unique and stable over restarts; a pod's name.
    pub id: String,
    /// `host:port` of its gRPC server.
    pub address: String,
    /// Availability zone, empty when there are none.
    pub zone: String,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Last heartbeat, Unix seconds.
    pub heartbeat_unix_seconds: u64,
    /// Sorted, unique.
    pub tokens: Vec<Token>,
}

impl Instance {
    /// An active instance with `token_count` tokens made from its id.
    pub fn active(id: impl Into<String>, address: impl Into<String>, token_count: usize, now_unix_seconds: u64) -> Self {
        let id = id.into();
        let tokens = instance_tokens(&id, token_count);
        Self { id, address: address.into(), zone: String::new(), state: InstanceState::Active, heartbeat_unix_seconds: now_unix_seconds, tokens }
    }

    /// Whether the last heartbeat is at most `timeout_seconds` old. A clock that is ahead of ours counts as fresh.
    pub fn has_heartbeat(&self, now_unix_seconds: u64, timeout_seconds: u64) -> bool {
        now_unix_seconds.saturating_sub(self.heartbeat_unix_seconds) <= timeout_seconds
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn states_survive_the_wire() {
        for number in 0..5 {
            assert_eq!(InstanceState::from_i32(number).unwrap() as i32, number);
        }
        assert_eq!(InstanceState::from_i32(5), None);
        assert_eq!(InstanceState::from_i32(-1), None);
        assert_eq!(InstanceState::Leaving.to_string(), "LEAVING");
    }

    #[test]
    fn a_heartbeat_ages() {
        let instance = Instance::active("a", "127.0.0.1:9095", 1, 1_000);
        assert!(instance.has_heartbeat(1_060, 60));
        assert!(!instance.has_heartbeat(1_061, 60));
        assert!(instance.has_heartbeat(900, 60));
    }
}
