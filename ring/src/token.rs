//! Tokens: positions on the ring of 2^32 places.

/// A position on the ring.
pub type Token = u32;

const FNV_OFFSET: u32 = 2_166_136_261;
const FNV_PRIME: u32 = 16_777_619;

/// The place of a trace: FNV-1, 32 bits, over the tenant's bytes followed by the trace id. The same as Tempo's, so that one ring
/// can be compared with the other.
pub fn trace_token(tenant: &str, trace_id: &[u8; 16]) -> Token {
    fnv1(fnv1(FNV_OFFSET, tenant.as_bytes()), trace_id)
}

/// The place of anything that has a name (a block, a tenant's index): FNV-1a, 32 bits.
pub fn name_token(name: &str) -> Token {
    name.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME))
}

/// `count` tokens for the instance `id`, sorted and unique. The same id always gets the same tokens, so that an instance that
/// returns after losing its disk takes its old place.
pub fn instance_tokens(id: &str, count: usize) -> Vec<Token> {
    let mut state = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut tokens = std::collections::BTreeSet::new();
    while tokens.len() < count {
        tokens.insert((split_mix(&mut state) >> 32) as Token);
    }
    tokens.into_iter().collect()
}

fn fnv1(hash: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(hash, |hash, &byte| hash.wrapping_mul(FNV_PRIME) ^ u32::from(byte))
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of the FNV reference page (http://www.isthe.com/chongo/tech/comp/fnv).
    #[test]
    fn hashes_are_the_published_ones() {
        assert_eq!(fnv1(FNV_OFFSET, b""), 0x811c_9dc5);
        assert_eq!(fnv1(FNV_OFFSET, b"a"), 0x050c_5d7e);
        assert_eq!(fnv1(FNV_OFFSET, b"foobar"), 0x31f0_b262);
        assert_eq!(name_token("a"), 0xe40c_292c);
        assert_eq!(name_token("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn a_trace_token_depends_on_tenant_and_id() {
        assert_eq!(trace_token("t", &[7; 16]), fnv1(FNV_OFFSET, &[b"t".as_slice(), &[7; 16]].concat()));
        assert_ne!(trace_token("t", &[7; 16]), trace_token("u", &[7; 16]));
        assert_ne!(trace_token("t", &[7; 16]), trace_token("t", &[8; 16]));
    }

    #[test]
    fn instance_tokens_are_sorted_unique_and_stable() {
        let tokens = instance_tokens("ingester-0", 512);
        assert_eq!(tokens.len(), 512);
        assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(tokens, instance_tokens("ingester-0", 512));
        assert_ne!(tokens, instance_tokens("ingester-1", 512));
    }
}
