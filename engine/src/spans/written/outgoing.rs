//! Tables as they are best sent: in the fewest bytes of all the forms that are taken.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef},
    datatypes::{Field, Schema},
    record_batch::RecordBatch,
};

use super::{DERIVED, ids, keys::with_narrow_keys};
use crate::error::Result;

/// The batches, which have one schema, without columns that would be ignored, ids as bytes, dictionaries by narrow keys: half of what
/// `SELECT * FROM spans` gives. What would be refused stays as it is. Cost: a pass over these columns. Errors: `Internal`.
pub fn for_the_wire(batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let schema = first.schema_ref();
    let taken: Vec<usize> = (0..schema.fields().len()).filter(|&at| !DERIVED.contains(&schema.field(at).name().as_str())).collect();
    let mut batches = batches.iter().map(|batch| Ok(batch.project(&taken)?)).collect::<Result<Vec<_>>>()?;
    for (name, as_bytes) in [("trace_id", ids::as_bytes::<16> as AsBytes), ("span_id", ids::as_bytes::<8>), ("parent_span_id", ids::as_bytes::<8>)] {
        batches = with_ids(batches, name, as_bytes)?;
    }
    with_narrow_keys(&batches)
}

type AsBytes = fn(&ArrayRef) -> Option<ArrayRef>;

/// The batches with bytes in column `name`, if it has ids in all of them.
fn with_ids(batches: Vec<RecordBatch>, name: &str, as_bytes: AsBytes) -> Result<Vec<RecordBatch>> {
    let ids = batches.iter().map(|batch| as_bytes(batch.column_by_name(name)?)).collect::<Option<Vec<_>>>();
    let Some(ids) = ids else { return Ok(batches) };
    batches.into_iter().zip(ids).map(|(batch, ids)| with_column(&batch, name, ids)).collect()
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch> {
    let kind = column.data_type().clone();
    let at = batch.schema_ref().index_of(name)?;
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    let field = |(place, field): (usize, &Arc<Field>)| {
        if place == at { Arc::new(field.as_ref().clone().with_data_type(kind.clone())) } else { field.clone() }
    };
    let fields: Vec<Arc<Field>> = batch.schema_ref().fields().iter().enumerate().map(field).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::{
        array::{DictionaryArray, StringArray},
        datatypes::{DataType, Int32Type},
    };

    use super::{super::SpanTable, *};

    fn batch(trace: &str, parents: [Option<&str>; 2]) -> RecordBatch {
        let texts = |texts: [Option<&str>; 2]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let numbers = |number: i64| -> ArrayRef { Arc::new(arrow::array::Int64Array::from(vec![number; 2])) };
        let names: DictionaryArray<Int32Type> = [Some("a"), None].into_iter().collect();
        RecordBatch::try_from_iter([
            ("trace_id", texts([Some(trace); 2])),
            ("span_id", texts([Some("b7ad6b7169203331"), Some("B7AD6B7169203332")])),
            ("parent_span_id", texts(parents)),
            ("name", Arc::new(names)),
            ("start_time", numbers(5)),
            ("duration_nanos", numbers(7)),
            ("root_name", texts([Some("ignored"); 2])),
        ])
        .unwrap()
    }

    fn record(batch: &RecordBatch) -> Vec<u8> {
        SpanTable::try_new(batch).unwrap().record(Vec::with_capacity).unwrap()
    }

    #[test]
    fn the_same_spans_are_sent_in_fewer_bytes() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let given = [batch(trace, [None, Some("b7ad6b7169203331")]), batch(trace, [None, None])];
        let sent = for_the_wire(&given).unwrap();
        for (given, sent) in given.iter().zip(&sent) {
            let kinds: Vec<&DataType> = sent.schema_ref().fields().iter().map(|field| field.data_type()).collect();
            let name = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
            let [trace, span] = [16, 8].map(DataType::FixedSizeBinary);
            assert_eq!(kinds, [&trace, &span, &span, &name, &DataType::Int64, &DataType::Int64]);
            assert_eq!(record(sent), record(given));
        }
        assert!(for_the_wire(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_id_is_for_the_server_to_refuse() {
        let short = "0af7651916cd43dd";
        let given = [batch(&format!("{short}{short}"), [None, Some("")]), batch(short, [None, Some("b7ad6b716920333x")])];
        let sent = for_the_wire(&given).unwrap();
        assert!(["trace_id", "parent_span_id"].iter().all(|name| sent[0].column_by_name(name) == given[0].column_by_name(name)));
        let told = SpanTable::try_new(&sent[1]).unwrap_err().to_string();
        assert!(told.contains(&format!("\"{short}\"")), "{told}");
    }
}
