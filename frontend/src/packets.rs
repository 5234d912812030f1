//! Answers cut into messages that are not too large: query-api 7.1.

use std::mem;

use prost::Message;
use skein_proto::tempo::{
    InstantSeries, QueryInstantResponse, QueryRangeResponse, SearchResponse, SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsResponse,
    SearchTagsV2Response, SearchTagsV2Scope, TagValue, TimeSeries, TraceSearchMetadata,
};

/// What a message needs for the key and the length of one item.
const ITEM_OVERHEAD: usize = 6;

/// A message that is a list and what is said of the whole list.
pub(crate) trait Packets: Message + Clone + 'static {
    type Item;
    /// The list, taken out.
    fn take(&mut self) -> Vec<Self::Item>;
    /// This message, without what only the last packet says, unless it `is_last`, with these items.
    fn packet(&self, items: Vec<Self::Item>, is_last: bool) -> Self;
    fn item_bytes(item: &Self::Item) -> usize;
}

/// Cuts `whole` into messages of about `bytes_max`, each with at least one item; 0 is no limit. The figures of the whole are in each.
pub(crate) fn packets<T: Packets>(mut whole: T, bytes_max: usize) -> Vec<T> {
    let mut packets = Vec::new();
    let all = whole.take();
    let without_items = whole.encoded_len();
    let (mut items, mut bytes) = (Vec::new(), without_items);
    for item in all {
        let more = T::item_bytes(&item) + ITEM_OVERHEAD;
        if bytes_max > 0 && bytes + more > bytes_max && !items.is_empty() {
            packets.push(whole.packet(mem::take(&mut items), false));
            bytes = without_items;
        }
        bytes += more;
        items.push(item);
    }
    packets.push(whole.packet(items, true));
    packets
}

/// A message with one list, the other fields being in every packet.
macro_rules! list_message {
    ($message:ty, $field:ident: $item:ty, $bytes:expr) => {
        impl Packets for $message {
            type Item = $item;

            fn take(&mut self) -> Vec<$item> {
                mem::take(&mut self.$field)
            }

            fn packet(&self, $field: Vec<$item>, _: bool) -> Self {
                Self { $field, ..self.clone() }
            }

            fn item_bytes(item: &$item) -> usize {
                $bytes(item)
            }
        }
    };
}

list_message!(SearchResponse, traces: TraceSearchMetadata, Message::encoded_len);
list_message!(SearchTagsResponse, tag_names: String, String::len);
list_message!(SearchTagValuesResponse, tag_values: String, String::len);
list_message!(SearchTagValuesV2Response, tag_values: TagValue, Message::encoded_len);

/// A message with series; status and message are said once.
macro_rules! series_message {
    ($message:ident, $item:ty) => {
        impl Packets for $message {
            type Item = $item;

            fn take(&mut self) -> Vec<$item> {
                mem::take(&mut self.series)
            }

            fn packet(&self, series: Vec<$item>, is_last: bool) -> Self {
                if is_last { Self { series, ..self.clone() } } else { Self { series, metrics: self.metrics.clone(), ..Self::default() } }
            }

            fn item_bytes(item: &$item) -> usize {
                item.encoded_len()
            }
        }
    };
}

series_message!(QueryRangeResponse, TimeSeries);
series_message!(QueryInstantResponse, InstantSeries);

/// A scope may go on in the next packet, under its name again.
impl Packets for SearchTagsV2Response {
    type Item = (String, String);

    fn take(&mut self) -> Vec<(String, String)> {
        let pairs = |scope: SearchTagsV2Scope| scope.tags.into_iter().map(move |tag| (scope.name.clone(), tag));
        mem::take(&mut self.scopes).into_iter().flat_map(pairs).collect()
    }

    fn packet(&self, items: Vec<(String, String)>, _: bool) -> Self {
        let mut scopes: Vec<SearchTagsV2Scope> = Vec::new();
        for (name, tag) in items {
            match scopes.last_mut().filter(|scope| scope.name == name) {
                Some(scope) => scope.tags.push(tag),
                None => scopes.push(SearchTagsV2Scope { name, tags: vec![tag] }),
            }
        }
        Self { scopes, metrics: self.metrics.clone() }
    }

    fn item_bytes((_, tag): &(String, String)) -> usize {
        tag.len()
    }
}

#[cfg(test)]
mod tests {
    use skein_proto::tempo::{PartialStatus, SearchMetrics};

    use super::*;

    #[test]
    fn packets_hold_everything_and_stay_small() {
        let whole = SearchTagValuesResponse { tag_values: (0..1000).map(|number| format!("value {number}")).collect(), metrics: None };
        for bytes_max in [1, 100, 5000] {
            let cut = packets(whole.clone(), bytes_max);
            assert!(cut.iter().all(|packet| packet.encoded_len() <= bytes_max || packet.tag_values.len() == 1));
            assert_eq!(cut.into_iter().flat_map(|packet| packet.tag_values).collect::<Vec<_>>(), whole.tag_values, "{bytes_max}");
        }
        assert_eq!(packets(whole.clone(), 0), [whole]);
        assert_eq!(packets(SearchResponse::default(), 10), [SearchResponse::default()], "an empty answer is one message");
    }

    #[test]
    fn figures_are_in_each_packet_and_the_status_in_the_last() {
        let metrics = Some(SearchMetrics { completed_jobs: 3, ..Default::default() });
        let status = PartialStatus::Partial as i32;
        let whole = QueryRangeResponse { series: vec![TimeSeries::default(); 3], metrics: metrics.clone(), status, message: "more".into() };
        let cut = packets(whole, 1);
        assert_eq!(cut.iter().map(|packet| packet.message.as_str()).collect::<Vec<_>>(), ["", "", "more"]);
        assert!(cut.iter().all(|packet| packet.metrics == metrics && packet.series.len() == 1));
        assert_eq!((cut[0].status, cut[2].status), (PartialStatus::Complete as i32, status));
    }

    #[test]
    fn a_scope_goes_on_under_its_name() {
        let scope = |name: &str, tags: &[&str]| SearchTagsV2Scope { name: name.into(), tags: tags.iter().map(|tag| tag.to_string()).collect() };
        let whole = SearchTagsV2Response { scopes: vec![scope("span", &["a", "b"]), scope("resource", &["c"])], metrics: None };
        let scopes: Vec<_> = packets(whole.clone(), 1).into_iter().map(|packet| packet.scopes).collect();
        assert_eq!(scopes, [[scope("span", &["a"])], [scope("span", &["b"])], [scope("resource", &["c"])]]);
        assert_eq!(packets(whole.clone(), 100), [whole]);
    }
}
