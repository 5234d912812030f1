//! Merging blocks: their spans into one builder, copies dropped, and out as one block.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::ObjectStore;

use super::Merger;
use crate::{
    block::{put::put_block, reader::BlockReader, writer::write_block},
    catalog::meta::BlockMeta,
    error::{Error, Result},
    spans::{
        BlockId,
        builder::SpanBuilder,
        gather::OrderedSpans,
        schema::{ColumnPolicy, SpanSchema},
        tree::order_spans,
    },
    tenant::TenantId,
};

/// Merges blocks in memory. Cost: all spans of the inputs in memory as columns, some 150 to 400 bytes each.
#[derive(Debug)]
pub struct BlockMerger {
    store: Arc<dyn ObjectStore>,
}

impl BlockMerger {
    /// A merger over `store`.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Merger for BlockMerger {
    async fn merge(&self, tenant: &TenantId, inputs: &[Arc<BlockMeta>]) -> Result<BlockMeta> {
        let mut builder = SpanBuilder::default();
        for input in inputs {
            let block = BlockReader::open(self.store.clone(), input.clone()).await?;
            let (columns, events) = (block.schema().columns(), block.schema().event_columns());
            for group in 0..block.index().row_groups.len() {
                let (batch, _) = block.read(group, &columns, &events, None).await?;
                builder.append_batch(&batch, block.schema(), &block.index().resources, &block.index().scopes)?;
            }
        }
        let objects = tokio::task::spawn_blocking(move || {
            let set = builder.snapshot();
            drop(builder);
            let order = order_spans(&set);
            let schema = SpanSchema::of(&set, ColumnPolicy::BLOCK);
            write_block(&OrderedSpans::new(set, order, schema))
        })
        .await
        .map_err(|e| Error::internal("merging blocks").with_source(e))??;
        put_block(&*self.store, tenant, BlockId::random(), objects).await
    }
}
