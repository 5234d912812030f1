//! Block meta: what `meta.json` says of a block, where a block's objects lie, and the few changes a block's folder goes through.
//!
//! A folder is a block once `meta.json` is in it, which is written last. It stops being one when `meta.compacted.json` is there: written
//! first, then `meta.json` is deleted. When its objects are deleted, `meta.compacted.json` goes last. So after a crash between any two
//! steps the folder still says what it is.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde::{Deserialize, Serialize};

use crate::{
    clock::{format_rfc3339, parse_rfc3339},
    error::{Error, ErrorKind, Result},
    spans::BlockId,
    tenant::TenantId,
};

/// `format` of the blocks this version writes and reads.
pub const FORMAT: &str = "skein1";
/// Name of a block's Parquet file.
pub const DATA_NAME: &str = "data.parquet";
/// Name of a block's index.
pub const INDEX_NAME: &str = "index";
/// Name of a live block's meta.
pub const META_NAME: &str = "meta.json";
/// Name of a replaced or expired block's meta.
pub const COMPACTED_META_NAME: &str = "meta.compacted.json";

/// Name of the bloom filter of one shard.
pub fn bloom_name(shard: u32) -> String {
    format!("bloom-{shard}")
}

/// The folder of a tenant. The name is taken as it is, also where object stores would rather see it escaped.
pub fn tenant_path(tenant: &TenantId) -> Path {
    Path::parse(tenant.as_str()).expect("a tenant id has neither slashes nor control characters and is no relative path")
}

/// The folder of a block: `<tenant>/<blockID>`.
pub fn block_path(tenant: &TenantId, block: BlockId) -> Path {
    tenant_path(tenant).join(block.to_string())
}

/// An object of a block: `<tenant>/<blockID>/<name>`.
pub fn object_path(tenant: &TenantId, block: BlockId, name: &str) -> Path {
    block_path(tenant, block).join(name)
}

/// Segments of one ingester's log, both ends included, whose spans of the block's tenant are all in the block.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WalRange {
    /// Whose log.
    pub ingester: String,
    /// First segment.
    pub first: u64,
    /// Last segment.
    pub last: u64,
}

impl WalRange {
    /// Puts ranges together where they overlap or touch. Sorted by ingester and segment.
    pub fn merge(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort();
        ranges.dedup_by(|next, merged| {
            let touches = next.ingester == merged.ingester && next.first <= merged.last.saturating_add(1);
            if touches {
                merged.last = merged.last.max(next.last);
            }
            touches
        });
        ranges
    }

    /// Whether `segment` of `ingester`'s log is among these.
    pub fn contains(&self, ingester: &str, segment: u64) -> bool {
        self.ingester == ingester && (self.first..=self.last).contains(&segment)
    }
}

/// What is known of a block without opening it. Never changes once written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MetaJson", into = "MetaJson")]
pub struct BlockMeta {
    /// The block.
    pub id: BlockId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The earliest time of any span.
    pub min_start_unix_nano: u64,
    /// The latest time of any span; not before `min_start_unix_nano`.
    pub max_end_unix_nano: u64,
    /// When the youngest of its spans was written to a block for the first time; retention counts from here.
    pub created_unix_nano: u64,
    /// Distinct traces.
    pub total_traces: u64,
    /// Rows of the data file.
    pub total_spans: u64,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// Bytes of the Parquet footer, so that one read fetches it.
    pub footer_bytes: u32,
    /// Row groups of the data file.
    pub row_groups: u32,
    /// Objects `bloom-0` to `bloom-(n-1)`.
    pub bloom_shards: u32,
    /// How often the spans were merged; 0 is fresh from an ingester.
    pub compaction_level: u32,
    /// In how many blocks each span was written: 0 or 1 is one.
    pub replication_factor: u32,
    /// Blocks whose spans are all in this one. They are no longer blocks, whatever their folders say.
    pub replaces: Vec<BlockId>,
    /// What of the ingesters' logs is in this block.
    pub wal: Vec<WalRange>,
}

impl BlockMeta {
    /// A meta with the given identity and everything else zero, to be filled in.
    pub fn new(id: BlockId, tenant: TenantId) -> Self {
        Self {
            id,
            tenant,
            min_start_unix_nano: 0,
            max_end_unix_nano: 0,
            created_unix_nano: 0,
            total_traces: 0,
            total_spans: 0,
            data_bytes: 0,
            footer_bytes: 0,
            row_groups: 0,
            bloom_shards: 0,
            compaction_level: 0,
            replication_factor: 0,
            replaces: Vec::new(),
            wal: Vec::new(),
        }
    }

    /// Path of one of the block's objects.
    pub fn object_path(&self, name: &str) -> Path {
        object_path(&self.tenant, self.id, name)
    }

    /// Checks what must hold for any block. Errors: `Data`.
    pub fn validate(&self) -> Result<()> {
        let wrong = if self.min_start_unix_nano > self.max_end_unix_nano {
            "startTime is after endTime"
        } else if self.replaces.contains(&self.id) {
            "the block replaces itself"
        } else if self.total_spans > 0 && (self.row_groups == 0 || self.data_bytes == 0) {
            "spans without row groups or data"
        } else if self.wal.iter().any(|range| range.first > range.last) {
            "a log range ends before it begins"
        } else {
            return Ok(());
        };
        Err(Error::data(format!("meta of block {}: {wrong}", self.id)))
    }
}

/// `meta.json` as it is written: Tempo's keys, then ours. Unknown keys are ignored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetaJson {
    format: String,
    #[serde(rename = "blockID")]
    block_id: String,
    #[serde(rename = "tenantID")]
    tenant_id: String,
    start_time: String,
    end_time: String,
    total_objects: u64,
    size: u64,
    compaction_level: u32,
    total_records: u32,
    bloom_shards: u32,
    footer_size: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    replication_factor: u32,
    created_at: String,
    total_spans: u64,
    min_start_unix_nano: u64,
    max_end_unix_nano: u64,
    row_groups: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wal: Vec<WalRange>,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl From<BlockMeta> for MetaJson {
    fn from(meta: BlockMeta) -> Self {
        Self {
            format: FORMAT.into(),
            block_id: meta.id.to_string(),
            tenant_id: meta.tenant.to_string(),
            start_time: format_rfc3339(meta.min_start_unix_nano),
            end_time: format_rfc3339(meta.max_end_unix_nano),
            total_objects: meta.total_traces,
            size: meta.data_bytes,
            compaction_level: meta.compaction_level,
            total_records: meta.row_groups,
            bloom_shards: meta.bloom_shards,
            footer_size: meta.footer_bytes,
            replication_factor: meta.replication_factor,
            created_at: format_rfc3339(meta.created_unix_nano),
            total_spans: meta.total_spans,
            min_start_unix_nano: meta.min_start_unix_nano,
            max_end_unix_nano: meta.max_end_unix_nano,
            row_groups: meta.row_groups,
            replaces: meta.replaces.iter().map(BlockId::to_string).collect(),
            wal: meta.wal,
        }
    }
}

impl TryFrom<MetaJson> for BlockMeta {
    type Error = Error;

    fn try_from(json: MetaJson) -> Result<Self> {
        let meta = Self {
            id: BlockId::parse(&json.block_id)?,
            tenant: TenantId::parse(&json.tenant_id)?,
            min_start_unix_nano: json.min_start_unix_nano,
            max_end_unix_nano: json.max_end_unix_nano,
            created_unix_nano: parse_rfc3339(&json.created_at)
                .ok_or_else(|| Error::data(format!("createdAt '{}' is not an RFC 3339 time", json.created_at)))?,
            total_traces: json.total_objects,
            total_spans: json.total_spans,
            data_bytes: json.size,
            footer_bytes: json.footer_size,
            row_groups: json.row_groups,
            bloom_shards: json.bloom_shards,
            compaction_level: json.compaction_level,
            replication_factor: json.replication_factor,
            replaces: json.replaces.iter().map(|id| BlockId::parse(id)).collect::<Result<_>>()?,
            wal: json.wal,
        };
        meta.validate()?;
        Ok(meta)
    }
}

/// Only what is needed to tell a block of ours from others.
#[derive(Deserialize)]
struct FormatJson {
    format: String,
}

fn to_json(meta: &BlockMeta) -> Result<Bytes> {
    meta.validate()?;
    let json = serde_json::to_vec_pretty(meta).map_err(|e| Error::internal(format!("writing meta of block {}", meta.id)).with_source(e))?;
    Ok(json.into())
}

/// Reads a meta's text. Errors: `Data` for another format, for anything that is not a meta, and for the meta of another block.
fn from_json(bytes: &[u8], tenant: &TenantId, block: BlockId) -> Result<BlockMeta> {
    let not_json = |e: serde_json::Error| Error::data("not a block meta").with_source(e);
    let FormatJson { format } = serde_json::from_slice(bytes).map_err(not_json)?;
    if format != FORMAT {
        return Err(Error::data(format!("format '{format}' is not supported, only '{FORMAT}' is")));
    }
    let meta: BlockMeta = serde_json::from_slice(bytes).map_err(not_json)?;
    if meta.id != block || meta.tenant != *tenant {
        return Err(Error::data(format!("it is the meta of block {} of tenant {}", meta.id, meta.tenant)));
    }
    Ok(meta)
}

/// Writes `meta.json`, which makes the block exist: every other object must be durable. One request.
/// Errors: `Unavailable`, after which the meta may have been written or not.
pub async fn write_meta(store: &dyn ObjectStore, meta: &BlockMeta) -> Result<()> {
    let path = meta.object_path(META_NAME);
    store.put(&path, to_json(meta)?.into()).await.map_err(|e| Error::from(e).context(format!("writing {path}")))?;
    Ok(())
}

/// Reads the meta of a live block. One request. Errors: `NotFound`, `Data`, `Unavailable`.
pub async fn read_meta(store: &dyn ObjectStore, tenant: &TenantId, block: BlockId) -> Result<BlockMeta> {
    read_named(store, tenant, block, META_NAME).await
}

/// Reads the meta of a block that is no longer live. One request. Errors: `NotFound`, `Data`, `Unavailable`.
pub async fn read_compacted_meta(store: &dyn ObjectStore, tenant: &TenantId, block: BlockId) -> Result<BlockMeta> {
    read_named(store, tenant, block, COMPACTED_META_NAME).await
}

async fn read_named(store: &dyn ObjectStore, tenant: &TenantId, block: BlockId, name: &str) -> Result<BlockMeta> {
    let path = object_path(tenant, block, name);
    let doing = || format!("reading {path}");
    let bytes = async { store.get(&path).await?.bytes().await }.await.map_err(|e| Error::from(e).context(doing()))?;
    from_json(&bytes, tenant, block).map_err(|e| e.context(doing()))
}

/// Says in the store that a block is no longer live. Two requests; may be repeated after a failure. Errors: `Unavailable`.
pub async fn mark_compacted(store: &dyn ObjectStore, meta: &BlockMeta) -> Result<()> {
    let doing = || format!("marking block {} of tenant {} compacted", meta.id, meta.tenant);
    let compacted = meta.object_path(COMPACTED_META_NAME);
    store.put(&compacted, to_json(meta)?.into()).await.map_err(|e| Error::from(e).context(doing()))?;
    delete_object(store, &meta.object_path(META_NAME)).await.map_err(|e| e.context(doing()))
}

/// Deletes all objects of a block, `meta.compacted.json` last. A listing and one request for each object; may be repeated after a failure.
/// Errors: `Unavailable`.
pub async fn delete_block(store: &dyn ObjectStore, tenant: &TenantId, block: BlockId) -> Result<()> {
    let folder = block_path(tenant, block);
    let doing = || format!("deleting {folder}");
    let (last, first): (Vec<Path>, Vec<Path>) = store
        .list(Some(&folder))
        .map_ok(|object| object.location)
        .try_collect::<Vec<_>>()
        .await
        .map_err(|e| Error::from(e).context(doing()))?
        .into_iter()
        .partition(|path| path.filename() == Some(COMPACTED_META_NAME));
    for path in first.into_iter().chain(last) {
        delete_object(store, &path).await.map_err(|e| e.context(doing()))?;
    }
    Ok(())
}

/// Deletes what a writer that died left of a block, unless there is a meta after all. Returns whether it did.
/// Errors: `Unavailable`.
pub async fn delete_unfinished(store: &dyn ObjectStore, tenant: &TenantId, block: BlockId) -> Result<bool> {
    let folder = block_path(tenant, block);
    let mut objects = store.list(Some(&folder));
    while let Some(object) = objects.next().await {
        if matches!(object?.location.filename(), Some(META_NAME | COMPACTED_META_NAME)) {
            return Ok(false);
        }
    }
    delete_block(store, tenant, block).await.map(|()| true)
}

/// Deletes an object that may be gone already.
async fn delete_object(store: &dyn ObjectStore, path: &Path) -> Result<()> {
    match store.delete(path).await.map_err(Error::from) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::memory::InMemory;

    use super::*;

    pub(crate) const SECOND: u64 = 1_000_000_000;

    /// A block of two traces and three spans between two seconds; `number` makes the id.
    pub(crate) fn block(number: u128, start_second: u64, end_second: u64) -> BlockMeta {
        BlockMeta {
            min_start_unix_nano: start_second * SECOND,
            max_end_unix_nano: end_second * SECOND,
            created_unix_nano: end_second * SECOND,
            total_traces: 2,
            total_spans: 3,
            data_bytes: 100,
            footer_bytes: 10,
            row_groups: 1,
            bloom_shards: 1,
            ..BlockMeta::new(id(number), tenant())
        }
    }

    pub(crate) fn id(number: u128) -> BlockId {
        BlockId::parse(&format!("00000000-0000-4000-8000-{number:012x}")).unwrap()
    }

    pub(crate) fn tenant() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    #[tokio::test]
    async fn a_meta_is_read_back_as_it_was_written() {
        let store = InMemory::new();
        let mut meta = block(1, 5, 6);
        meta.min_start_unix_nano = 1_646_092_799_123_456_789;
        meta.max_end_unix_nano = u64::MAX;
        meta.created_unix_nano = 1_700_000_000_000_000_001;
        meta.replaces = vec![id(7), id(8)];
        meta.wal = vec![WalRange { ingester: "ingester-0".into(), first: 3, last: 9 }];
        write_meta(&store, &meta).await.unwrap();
        assert_eq!(read_meta(&store, &tenant(), meta.id).await.unwrap(), meta);
    }

    #[test]
    fn the_text_has_tempos_keys() {
        let mut meta = block(1, 1_646_092_799, 1_646_092_800);
        meta.replication_factor = 1;
        let json: serde_json::Value = serde_json::from_slice(&to_json(&meta).unwrap()).unwrap();
        let expected = serde_json::json!({
            "format": "skein1",
            "blockID": "00000000-0000-4000-8000-000000000001",
            "tenantID": "acme",
            "startTime": "2022-02-28T23:59:59Z",
            "endTime": "2022-03-01T00:00:00Z",
            "totalObjects": 2,
            "size": 100,
            "compactionLevel": 0,
            "totalRecords": 1,
            "bloomShards": 1,
            "footerSize": 10,
            "replicationFactor": 1,
            "createdAt": "2022-03-01T00:00:00Z",
            "totalSpans": 3,
            "minStartUnixNano": 1_646_092_799_000_000_000u64,
            "maxEndUnixNano": 1_646_092_800_000_000_000u64,
            "rowGroups": 1
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn damaged_and_foreign_metas_are_refused() {
        let good = String::from_utf8(to_json(&block(1, 5, 6)).unwrap().to_vec()).unwrap();
        let check = |text: &str, message: &str| {
            let error = from_json(text.as_bytes(), &tenant(), id(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data);
            assert!(error.to_string().contains(message), "{error}");
        };
        assert!(from_json(good.replace("\"size\"", "\"later\": [1], \"size\"").as_bytes(), &tenant(), id(1)).is_ok(), "unknown keys are ignored");
        check("", "not a block meta");
        check(&good[..good.len() / 2], "not a block meta");
        check(&format!("{good}x"), "not a block meta");
        check(&good.replace("skein1", "vParquet4"), "format 'vParquet4' is not supported");
        check(&good.replace("000000000001", "000000000002"), "it is the meta of block");
        check(&good.replace("acme", "other"), "of tenant other");
        check(&good.replace("\"maxEndUnixNano\": 6000000000", "\"maxEndUnixNano\": 4000000000"), "startTime is after endTime");
        check(&good.replace("\"createdAt\": \"1970", "\"createdAt\": \"1x70"), "createdAt");
        check(&good.replace("\"rowGroups\": 1", "\"rowGroups\": 0"), "without row groups");
    }

    #[tokio::test]
    async fn a_block_is_marked_and_deleted_with_its_meta_last() {
        let store = InMemory::new();
        let meta = block(1, 5, 6);
        for name in [DATA_NAME, INDEX_NAME, &bloom_name(0)] {
            store.put(&meta.object_path(name), "x".into()).await.unwrap();
        }
        write_meta(&store, &meta).await.unwrap();
        mark_compacted(&store, &meta).await.unwrap();
        mark_compacted(&store, &meta).await.unwrap();
        assert_eq!(read_meta(&store, &tenant(), meta.id).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(read_compacted_meta(&store, &tenant(), meta.id).await.unwrap(), meta);
        assert!(!delete_unfinished(&store, &tenant(), meta.id).await.unwrap(), "a block with a meta is not unfinished");
        delete_block(&store, &tenant(), meta.id).await.unwrap();
        assert_eq!(store.list(None).count().await, 0);
    }

    #[test]
    fn log_ranges_are_put_together() {
        let range = |ingester: &str, first, last| WalRange { ingester: ingester.into(), first, last };
        let merged = WalRange::merge(vec![range("b", 1, 1), range("a", 4, 6), range("a", 1, 3), range("a", 8, 9), range("a", 2, 2)]);
        assert_eq!(merged, [range("a", 1, 6), range("a", 8, 9), range("b", 1, 1)]);
        assert!(merged[0].contains("a", 6) && !merged[0].contains("a", 7) && !merged[0].contains("b", 6));
    }
}
