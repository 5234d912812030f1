//! The ring: from a token to the instances that hold what lies there.

use std::collections::BTreeMap;

use crate::{
    Error, Result,
    instance::{Instance, InstanceState},
    token::Token,
};

/// What a replica set is for: states that may serve differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Only active instances; others are skipped and the set is extended by the next one.
    Write,
    /// Active, pending and leaving instances: whoever may still hold data.
    Read,
}

impl Operation {
    fn accepts(self, state: InstanceState) -> bool {
        match self {
            Self::Write => state == InstanceState::Active,
            Self::Read => matches!(state, InstanceState::Active | InstanceState::Pending | InstanceState::Leaving),
        }
    }

    /// Whether an instance in `state` is left out of the set and replaced by the next on the ring.
    fn extends(self, state: InstanceState) -> bool {
        match self {
            Self::Write => state != InstanceState::Active,
            Self::Read => matches!(state, InstanceState::Joining | InstanceState::Left),
        }
    }
}

/// Rules of one ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingSettings {
    /// Instances that hold each trace.
    pub replication_factor: usize,
    /// An instance silent for longer is unhealthy.
    pub heartbeat_timeout_seconds: u64,
    /// Spread the replicas of a trace over zones.
    pub zone_awareness_enabled: bool,
}

impl Default for RingSettings {
    /// Tempo's defaults: one replica, five minutes, no zones.
    fn default() -> Self {
        Self { replication_factor: 1, heartbeat_timeout_seconds: 300, zone_awareness_enabled: false }
    }
}

/// The instances that an operation on one token goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSet<'a> {
    /// Healthy instances, in ring order.
    pub instances: Vec<&'a Instance>,
    /// How many of them may fail before the operation has failed.
    pub max_errors: usize,
}

/// The members and their tokens. Built anew from each membership change; lookups allocate only the answer.
#[derive(Debug, Clone)]
pub struct Ring {
    settings: RingSettings,
    instances: Vec<Instance>,
    /// Sorted by token, unique (RG-1); the second half is an index into `instances`.
    tokens: Vec<(Token, usize)>,
    zone_count: usize,
}

impl Ring {
    /// Builds the ring. A token that two instances claim goes to the one with the smaller id.
    pub fn new(settings: RingSettings, mut instances: Vec<Instance>) -> Self {
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        instances.dedup_by(|a, b| a.id == b.id);
        let mut owners = BTreeMap::new();
        for (index, instance) in instances.iter().enumerate() {
            for token in &instance.tokens {
                owners.entry(*token).or_insert(index);
            }
        }
        let zones: std::collections::BTreeSet<&str> = instances.iter().map(|instance| instance.zone.as_str()).collect();
        let zone_count = zones.len();
        Self { settings, tokens: owners.into_iter().collect(), instances, zone_count }
    }

    /// The members, by id.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// Finds the replicas of `token`: its owner is the first token strictly greater, wrapping around; the next distinct instances
    /// (and zones, when zone awareness is on) follow.
    ///
    /// Writes need a majority (`replication_factor / 2 + 1`), but two replicas need only one, as in Tempo; reads need what writes
    /// leave room for. An unhealthy instance leaves the set but still counts as one that failed.
    pub fn replica_set(&self, token: Token, operation: Operation, now_unix_seconds: u64) -> Result<ReplicaSet<'_>> {
        if self.tokens.is_empty() {
            return Err(Error::Empty);
        }
        let first = self.tokens.partition_point(|(other, _)| *other <= token);
        let mut wanted = self.settings.replication_factor.max(1);
        let mut chosen: Vec<usize> = Vec::with_capacity(wanted);
        let mut zones: Vec<&str> = Vec::new();
        for (_, index) in self.tokens[first..].iter().chain(&self.tokens[..first]) {
            if chosen.len() == wanted {
                break;
            }
            if chosen.contains(index) {
                continue;
            }
            let instance = &self.instances[*index];
            let extends = operation.extends(instance.state);
            if self.settings.zone_awareness_enabled && self.zone_count > 1 {
                if zones.contains(&instance.zone.as_str()) {
                    continue;
                }
                // A zone is used up by an instance that serves; a skipped one leaves the place to its neighbour in the zone.
                if !extends {
                    zones.push(&instance.zone);
                }
            }
            if extends {
                wanted += 1;
            }
            chosen.push(*index);
        }
        let factor = self.settings.replication_factor.max(1);
        let healthy: Vec<&Instance> = chosen
            .iter()
            .map(|index| &self.instances[*index])
            .filter(|instance| operation.accepts(instance.state) && instance.has_heartbeat(now_unix_seconds, self.settings.heartbeat_timeout_seconds))
            .collect();
        let needed = if factor == 2 { 1 } else { factor / 2 + 1 };
        if healthy.len() < needed {
            return Err(Error::TooFewReplicas { needed, healthy: healthy.len() });
        }
        Ok(ReplicaSet { max_errors: healthy.len() - needed, instances: healthy })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 10_000;

    fn instance(id: &str, tokens: &[Token]) -> Instance {
        Instance { tokens: tokens.to_vec(), ..Instance::active(id, format!("{id}:9095"), 0, NOW) }
    }

    fn ring(replication_factor: usize, instances: Vec<Instance>) -> Ring {
        Ring::new(RingSettings { replication_factor, ..RingSettings::default() }, instances)
    }

    fn ids(ring: &Ring, token: Token, operation: Operation) -> Vec<String> {
        ring.replica_set(token, operation, NOW).unwrap().instances.iter().map(|i| i.id.clone()).collect()
    }

    fn three() -> Vec<Instance> {
        vec![instance("a", &[100, 400]), instance("b", &[200, 500]), instance("c", &[300, 600])]
    }

    #[test]
    fn the_owner_is_the_first_token_strictly_greater_and_wraps() {
        let ring = ring(1, three());
        for (token, owner) in [(0, "a"), (99, "a"), (100, "b"), (299, "c"), (300, "a"), (599, "c"), (600, "a"), (u32::MAX, "a")] {
            assert_eq!(ids(&ring, token, Operation::Write), [owner], "token {token}");
        }
    }

    #[test]
    fn replicas_are_distinct_and_in_ring_order() {
        let crowded = ring(3, vec![instance("a", &[1, 2, 3, 4]), instance("b", &[5]), instance("c", &[6])]);
        assert_eq!(ids(&crowded, 0, Operation::Write), ["a", "b", "c"]);
        assert_eq!(ids(&ring(2, three()), 150, Operation::Write), ["b", "c"]);
    }

    #[test]
    fn writes_skip_who_is_not_active_and_reads_do_not() {
        let mut members = three();
        members[1].state = InstanceState::Leaving;
        let ring = ring(2, members);
        assert_eq!(ids(&ring, 150, Operation::Write), ["c", "a"]);
        assert_eq!(ids(&ring, 150, Operation::Read), ["b", "c"]);
    }

    #[test]
    fn quorum_is_a_majority_but_one_of_two() {
        let errors = |factor, count: usize| {
            let members = (0..count).map(|i| instance(&format!("i{i}"), &[i as u32 * 10 + 10])).collect();
            ring(factor, members).replica_set(0, Operation::Write, NOW).map(|set| set.max_errors)
        };
        assert_eq!(errors(1, 3), Ok(0));
        assert_eq!(errors(2, 3), Ok(1));
        assert_eq!(errors(3, 3), Ok(1));
        assert_eq!(errors(5, 5), Ok(2));
        assert_eq!(errors(3, 1), Err(Error::TooFewReplicas { needed: 2, healthy: 1 }));
    }

    #[test]
    fn a_silent_instance_counts_as_a_failure() {
        let mut members = three();
        members[0].heartbeat_unix_seconds = NOW - 301;
        let one_away = ring(3, members.clone()).replica_set(0, Operation::Write, NOW).map(|set| (set.instances.len(), set.max_errors));
        assert_eq!(one_away, Ok((2, 0)));
        members[1].heartbeat_unix_seconds = NOW - 301;
        let two_away = ring(3, members);
        assert_eq!(two_away.replica_set(0, Operation::Write, NOW).unwrap_err(), Error::TooFewReplicas { needed: 2, healthy: 1 });
        assert_eq!(ring(1, Vec::new()).replica_set(0, Operation::Read, NOW).unwrap_err(), Error::Empty);
    }

    #[test]
    fn zones_are_not_repeated() {
        let zoned = |id: &str, token, zone: &str| Instance { zone: zone.to_owned(), ..instance(id, &[token]) };
        let members = vec![zoned("a1", 10, "a"), zoned("a2", 20, "a"), zoned("b1", 30, "b"), zoned("b2", 40, "b"), zoned("c1", 50, "c")];
        let settings = RingSettings { replication_factor: 3, zone_awareness_enabled: true, ..RingSettings::default() };
        assert_eq!(ids(&Ring::new(settings, members), 0, Operation::Write), ["a1", "b1", "c1"]);
    }

    #[test]
    fn leaving_moves_only_the_traces_of_who_left() {
        let members: Vec<Instance> = (0..5).map(|i| Instance::active(format!("i{i}"), "x", 128, NOW)).collect();
        let before = ring(1, members.clone());
        let after = ring(1, members[..4].to_vec());
        let mut per_instance = BTreeMap::new();
        for step in 0..10_000_u32 {
            let token = step.wrapping_mul(429_497);
            let owner = ids(&before, token, Operation::Write).remove(0);
            if owner != "i4" {
                assert_eq!(ids(&after, token, Operation::Write), std::slice::from_ref(&owner));
            }
            *per_instance.entry(owner).or_insert(0) += 1;
        }
        // 128 tokens each: no instance has less than half or more than double its share.
        assert_eq!(per_instance.len(), 5);
        assert!(per_instance.values().all(|count| (1_000..4_000).contains(count)), "{per_instance:?}");
    }
}
