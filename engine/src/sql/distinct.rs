//! Dictionaries without repeated values.
//!
//! Where DataFusion makes rows of groups, or puts batches together, a dictionary may hold a value several times, which its type allows and
//! some readers refuse: pandas makes categories of dictionaries, and a category is there once. Dictionaries are therefore made distinct where
//! batches leave.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, PrimitiveArray, RecordBatch, RecordBatchOptions, UInt32Array, downcast_dictionary_array},
    compute::{cast, take},
    datatypes::ArrowDictionaryKeyType,
    error::ArrowError,
    row::{RowConverter, SortField},
};

/// The dictionaries of a stream of batches, column by column. Each is looked at once, however many batches share it; then a batch costs a
/// comparison a column, and where values repeat its keys are mapped.
#[derive(Debug, Default)]
pub struct DistinctDictionaries(Vec<Option<Known>>);

/// The latest dictionary of a column.
#[derive(Debug)]
struct Known {
    /// Held, so that no other dictionary takes its place in memory.
    values: ArrayRef,
    /// None: it is distinct as it is.
    distinct: Option<Distinct>,
}

/// What takes the place of a dictionary.
#[derive(Debug, Clone)]
struct Distinct {
    /// Its values without repeats and nulls.
    values: ArrayRef,
    /// For each of its values the place in these; null for null.
    places: UInt32Array,
}

impl DistinctDictionaries {
    /// `batch`, the dictionaries of whose columns hold no value twice, and no null; dictionaries inside of lists and structures stay. Rows and
    /// types are the same. Errors: those of Arrow, for values that cannot be compared.
    pub fn of(&mut self, batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
        self.0.resize_with(batch.num_columns(), || None);
        let columns = batch.columns().iter().zip(&mut self.0).map(|(column, known)| distinct_column(column, known));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(batch.schema(), columns, &options)
    }
}

fn distinct_column(column: &ArrayRef, known: &mut Option<Known>) -> Result<ArrayRef, ArrowError> {
    let Some(values) = column.as_any_dictionary_opt().map(|dictionary| dictionary.values()) else { return Ok(column.clone()) };
    let same = |known: &&Known| known.values.to_data().ptr_eq(&values.to_data());
    let distinct = match known.as_ref().filter(same) {
        Some(known) => known.distinct.clone(),
        None => {
            let distinct = distinct_values(values)?;
            *known = Some(Known { values: values.clone(), distinct: distinct.clone() });
            distinct
        }
    };
    let Some(distinct) = distinct else { return Ok(column.clone()) };
    let dictionary = column.as_ref();
    downcast_dictionary_array!(
        dictionary => mapped(dictionary, &distinct),
        _ => Ok(column.clone())
    )
}

/// The distinct ones of `values`; None if they are that already.
fn distinct_values(values: &ArrayRef) -> Result<Option<Distinct>, ArrowError> {
    let converter = RowConverter::new(vec![SortField::new(values.data_type().clone())])?;
    let rows = converter.convert_columns(std::slice::from_ref(values))?;
    let mut places = HashMap::with_capacity(rows.num_rows());
    let mut first = Vec::new();
    let place = |(at, row)| {
        values.is_valid(at).then(|| {
            *places.entry(row).or_insert_with(|| {
                first.push(at as u32);
                first.len() as u32 - 1
            })
        })
    };
    let places: UInt32Array = rows.iter().enumerate().map(place).collect();
    if first.len() == values.len() {
        return Ok(None);
    }
    Ok(Some(Distinct { values: take(values, &UInt32Array::from(first), None)?, places }))
}

/// `column` over the values of `distinct`.
fn mapped<K: ArrowDictionaryKeyType>(column: &DictionaryArray<K>, distinct: &Distinct) -> Result<ArrayRef, ArrowError> {
    // There are no more values than before: their places fit into keys.
    let places = cast(&distinct.places, &K::DATA_TYPE)?;
    let keys: PrimitiveArray<K> = take(&places, column.keys(), None)?.as_primitive::<K>().clone();
    Ok(Arc::new(DictionaryArray::try_new(keys, distinct.values.clone())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::{
        array::{Int8Array, Int64Array, StringArray},
        datatypes::{Int8Type, Int32Type},
    };

    use super::*;

    fn dictionary(keys: &[Option<i8>], values: ArrayRef) -> ArrayRef {
        Arc::new(DictionaryArray::<Int8Type>::try_new(Int8Array::from(keys.to_vec()), values).unwrap())
    }

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn batch(column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([("column", column, true)]).unwrap()
    }

    fn column_of(dictionaries: &mut DistinctDictionaries, column: &ArrayRef) -> ArrayRef {
        dictionaries.of(batch(column.clone())).unwrap().column(0).clone()
    }

    #[test]
    fn repeated_values_and_nulls_among_them_go_and_rows_stay() {
        let repeated = dictionary(&[Some(3), Some(0), None, Some(2), Some(1)], texts(&[Some("a"), Some("b"), None, Some("a")]));
        let distinct = column_of(&mut DistinctDictionaries::default(), &repeated);
        assert_eq!(distinct.data_type(), repeated.data_type());
        let distinct = distinct.as_dictionary::<Int8Type>();
        assert_eq!(distinct.values(), &texts(&[Some("a"), Some("b")]));
        assert_eq!(distinct.keys(), &Int8Array::from(vec![Some(0), Some(0), None, None, Some(1)]));
    }

    #[test]
    fn values_of_any_type_are_compared() {
        let numbers = dictionary(&[Some(0), Some(1), Some(2)], Arc::new(Int64Array::from(vec![5, 7, 5])));
        let distinct = column_of(&mut DistinctDictionaries::default(), &numbers);
        assert_eq!(distinct.as_dictionary::<Int8Type>().values().as_ref(), &Int64Array::from(vec![5, 7]));
        let plain: ArrayRef = Arc::new(Int64Array::from(vec![5, 5]));
        assert_eq!(&column_of(&mut DistinctDictionaries::default(), &plain), &plain);
    }

    #[test]
    fn a_distinct_dictionary_stays_the_one_it_is() {
        let column: ArrayRef = Arc::new(["a", "b", "a"].into_iter().collect::<DictionaryArray<Int32Type>>());
        let same = column_of(&mut DistinctDictionaries::default(), &column);
        assert!(same.to_data().ptr_eq(&column.to_data()));
        let without_rows = dictionary(&[], texts(&[]));
        assert_eq!(column_of(&mut DistinctDictionaries::default(), &without_rows).len(), 0);
    }

    /// Encoders send a dictionary again when it is another one in memory.
    #[test]
    fn batches_that_share_a_dictionary_go_on_sharing_one() {
        let values = texts(&[Some("a"), Some("a")]);
        let mut dictionaries = DistinctDictionaries::default();
        let mut sent = |keys: &[Option<i8>], values: &ArrayRef| {
            let column = column_of(&mut dictionaries, &dictionary(keys, values.clone()));
            column.as_dictionary::<Int8Type>().values().clone()
        };
        let (first, second) = (sent(&[Some(0)], &values), sent(&[Some(1)], &values));
        assert!(first.to_data().ptr_eq(&second.to_data()));
        let others = texts(&[Some("c"), Some("d")]);
        assert_eq!(&sent(&[Some(1)], &others), &others);
    }
}
