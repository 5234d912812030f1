//! Putting a block's objects into the store. `meta.json`, which makes it a block, is the caller's last step.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::writer::BlockObjects;
use crate::{
    catalog::meta::{BlockMeta, DATA_NAME, INDEX_NAME, bloom_name},
    error::{Error, Result},
    spans::BlockId,
    tenant::TenantId,
};

/// Objects written at the same time.
const PUTS_AT_ONCE: usize = 4;

/// Writes every object but `meta.json` and returns the meta, without what only the caller knows (creation time, log ranges, level).
/// Errors: as the store's.
pub async fn put_block(store: &dyn ObjectStore, tenant: &TenantId, id: BlockId, objects: BlockObjects) -> Result<BlockMeta> {
    let mut meta = BlockMeta::new(id, tenant.clone());
    meta.min_start_unix_nano = objects.start_unix_nano;
    meta.max_end_unix_nano = objects.end_unix_nano.max(objects.start_unix_nano);
    meta.total_traces = objects.traces as u64;
    meta.total_spans = objects.spans as u64;
    meta.data_bytes = objects.data.len() as u64;
    meta.footer_bytes = objects.footer_bytes as u32;
    meta.row_groups = objects.row_groups as u32;
    meta.bloom_shards = objects.blooms.len() as u32;
    let blooms = objects.blooms.into_iter().enumerate().map(|(shard, bytes)| (bloom_name(shard as u32), bytes));
    let all: Vec<(String, Bytes)> =
        [(DATA_NAME.to_owned(), objects.data), (INDEX_NAME.to_owned(), objects.index)].into_iter().chain(blooms).collect();
    let puts = all.into_iter().map(|(name, bytes)| {
        let path = meta.object_path(&name);
        async move { store.put(&path, PutPayload::from(bytes)).await.map_err(|e| Error::from(e).context(format!("writing {path}"))) }
    });
    stream::iter(puts).buffer_unordered(PUTS_AT_ONCE).try_collect::<Vec<_>>().await?;
    Ok(meta)
}
