//! Columns in the types that take the fewest bytes: text that repeats by keys, keys and whole numbers as narrow as they can be.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int64Array, ListArray, StringArray, StructArray},
    buffer::OffsetBuffer,
    compute::{cast, max, min},
    datatypes::{DataType, Field, Fields, Int32Type, Int64Type},
};

use super::keys::{values_in, with_keys_for};
use crate::error::Result;

/// The types that whole numbers are sent in, narrowest first, with the least and the most that they hold.
const INTS: [(DataType, i64, i64); 5] = [
    (DataType::Int8, i8::MIN as i64, i8::MAX as i64),
    (DataType::Int16, i16::MIN as i64, i16::MAX as i64),
    (DataType::UInt16, 0, u16::MAX as i64),
    (DataType::Int32, i32::MIN as i64, i32::MAX as i64),
    (DataType::UInt32, 0, u32::MAX as i64),
];

/// One column of several batches, all of one type and again of one: text, and dictionaries of it by 32-bit keys, as dictionaries of what the rows
/// of a batch show, each value once, if it repeats; 64-bit numbers in fewer bits where these hold all of them; structs in lists by their fields;
/// others as they are. Errors: `Internal`. Cost: a pass, with a look-up for each text that is in no dictionary yet.
pub(super) fn shortest(arrays: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    match arrays.first().map(|array| array.data_type().clone()) {
        Some(DataType::Dictionary(key, values)) if *key == DataType::Int32 && *values == DataType::Utf8 => by_narrow_keys(&distinct(&arrays)?),
        Some(DataType::Utf8 | DataType::Utf8View) => shortest_text(arrays),
        Some(DataType::Int64) => shortest_ints(arrays),
        Some(DataType::List(item)) if matches!(item.data_type(), DataType::Struct(_)) => shortest_lists(&arrays),
        _ => Ok(arrays),
    }
}

/// Text that is in no dictionary, as one where a value is there twice on average.
fn shortest_text(arrays: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    let arrays = arrays.into_iter().map(|array| Ok(cast(&array, &DataType::Utf8)?)).collect::<Result<Vec<_>>>()?;
    let packed = distinct(&arrays)?;
    let values: usize = packed.iter().map(values_in).sum();
    let there: usize = packed.iter().map(|array| array.len() - array.null_count()).sum();
    if values == 0 || 2 * values > there { Ok(arrays) } else { by_narrow_keys(&packed) }
}

/// Text, or dictionaries of it, as dictionaries of what is shown.
fn distinct(arrays: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let packed = |array: &ArrayRef| match array.as_dictionary_opt::<Int32Type>() {
        Some(dictionary) => shown(dictionary),
        None => Ok(Arc::new(array.as_string::<i32>().iter().collect::<DictionaryArray<Int32Type>>()) as ArrayRef),
    };
    arrays.iter().map(packed).collect()
}

/// The dictionary without values that no row shows, each that is shown once.
fn shown(dictionary: &DictionaryArray<Int32Type>) -> Result<ArrayRef> {
    let values = dictionary.values().as_string::<i32>();
    let (mut places, mut numbers, mut texts) = (vec![None; values.len()], HashMap::new(), Vec::new());
    let mut number_of = |key: usize| {
        let text = values.value(key);
        *numbers.entry(text).or_insert_with(|| {
            texts.push(text);
            texts.len() as i32 - 1
        })
    };
    let place = |key: Option<usize>| {
        let key = key.filter(|&key| values.is_valid(key))?;
        Some(*places[key].get_or_insert_with(|| number_of(key)))
    };
    let keys: Int32Array = dictionary.keys_iter().map(place).collect();
    Ok(Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(texts)))?))
}

/// Dictionaries by the narrowest keys that are enough for all of them.
fn by_narrow_keys(arrays: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let most = arrays.iter().map(values_in).max().unwrap_or(0);
    arrays.iter().map(|array| with_keys_for(most, array)).collect()
}

fn shortest_ints(arrays: Vec<ArrayRef>) -> Result<Vec<ArrayRef>> {
    let numbers = || arrays.iter().map(|array| -> &Int64Array { array.as_primitive::<Int64Type>() });
    let least = numbers().filter_map(min).min().unwrap_or(0);
    let most = numbers().filter_map(max).max().unwrap_or(0);
    match INTS.iter().find(|(_, from, to)| (from..=to).contains(&&least) && (from..=to).contains(&&most)) {
        None => Ok(arrays),
        Some((kind, ..)) => arrays.iter().map(|array| Ok(cast(array, kind)?)).collect(),
    }
}

/// Lists of structs with their fields in shorter types. What entries a null covers goes with them.
fn shortest_lists(arrays: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let structs: Vec<StructArray> = arrays.iter().map(entries_of).collect();
    let fields = structs.first().map_or(0, StructArray::num_columns);
    let columns = (0..fields).map(|at| shortest(structs.iter().map(|entries| entries.column(at).clone()).collect())).collect::<Result<Vec<_>>>()?;
    let lists = arrays.iter().zip(&structs).enumerate();
    lists
        .map(|(batch, (array, entries))| with_entries(array.as_list(), entries, columns.iter().map(|column| column[batch].clone()).collect()))
        .collect()
}

/// The structs that the rows of a list show.
fn entries_of(array: &ArrayRef) -> StructArray {
    let list = array.as_list::<i32>();
    let (first, last) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
    list.values().as_struct().slice(first as usize, (last - first) as usize)
}

/// The list with `entries`, which are those that it shows, in these `columns`.
fn with_entries(list: &ListArray, entries: &StructArray, columns: Vec<ArrayRef>) -> Result<ArrayRef> {
    let typed = |(field, column): (&Arc<Field>, &ArrayRef)| field.as_ref().clone().with_data_type(column.data_type().clone());
    let fields: Fields = entries.fields().iter().zip(&columns).map(typed).collect();
    let kind = DataType::Struct(fields.clone());
    let entries = StructArray::try_new_with_length(fields, columns, entries.nulls().cloned(), entries.len())?;
    let item = match list.data_type() {
        DataType::List(item) => item.as_ref().clone().with_data_type(kind),
        _ => Field::new_list_field(kind, true),
    };
    let offsets = OffsetBuffer::from_lengths(list.value_offsets().windows(2).map(|ends| (ends[1] - ends[0]) as usize));
    Ok(Arc::new(ListArray::try_new(Arc::new(item), offsets, Arc::new(entries), list.nulls().cloned())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::StringViewArray;

    use super::*;

    /// What is sent, which must be of one type and say the same as what is given.
    fn sent(given: &[ArrayRef]) -> Vec<ArrayRef> {
        let sent = shortest(given.to_vec()).unwrap();
        assert_eq!(given.len(), sent.len());
        for (given, sent) in given.iter().zip(&sent) {
            let plain = if matches!(sent.data_type(), DataType::Dictionary(_, _)) { DataType::Utf8 } else { given.data_type().clone() };
            assert_eq!(cast(sent, &plain).unwrap().as_ref(), cast(given, &plain).unwrap().as_ref());
        }
        assert!(sent.iter().all(|array| array.data_type() == sent[0].data_type()));
        sent
    }

    fn coded(keys: Vec<Option<i32>>, values: &[Option<&str>]) -> ArrayRef {
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys.into(), Arc::new(StringArray::from(values.to_vec()))).unwrap())
    }

    fn by(key: DataType) -> DataType {
        DataType::Dictionary(Box::new(key), Box::new(DataType::Utf8))
    }

    #[test]
    fn dictionaries_have_what_is_shown_once() {
        let twice = coded(vec![Some(3), None, Some(1), Some(4), Some(3), Some(0)], &[Some("b"), Some("a"), Some("unused"), Some("b"), None]);
        let sent = sent(&[twice.clone(), twice.slice(1, 1), twice.slice(2, 1)]);
        assert_eq!(sent[0].data_type(), &by(DataType::Int8));
        let values = |array: &ArrayRef| array.as_any_dictionary().values().as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!([0, 1, 2].map(|at| values(&sent[at])), [vec!["b".to_owned(), "a".to_owned()], vec![], vec!["a".to_owned()]]);
    }

    #[test]
    fn keys_are_as_narrow_as_all_batches_allow() {
        let names: Vec<String> = (0..40_000).map(|name| name.to_string()).collect();
        let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
        let of = |values: usize| coded((0..values as i32).map(Some).collect(), &names);
        for (most, key) in [(128, DataType::Int8), (129, DataType::Int16), (0x8000, DataType::Int16), (0x8001, DataType::Int32)] {
            assert_eq!(sent(&[of(2), of(most)])[0].data_type(), &by(key));
        }
    }

    #[test]
    fn text_that_repeats_gets_a_dictionary() {
        let texts = |texts: &[Option<&str>]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(sent(&[texts(&[a, a, None]), texts(&[b, b])])[0].data_type(), &by(DataType::Int8));
        assert_eq!(sent(&[texts(&[a, a, None]), texts(&[b])])[0].data_type(), &DataType::Utf8);
        assert_eq!(sent(&[texts(&[None])])[0].data_type(), &DataType::Utf8);
        let views: ArrayRef = Arc::new(StringViewArray::from(vec![a, b]));
        assert_eq!(sent(&[views])[0].data_type(), &DataType::Utf8);
    }

    #[test]
    fn numbers_get_the_bits_that_they_need() {
        for (numbers, kind) in [
            (vec![Some(-128), None, Some(127)], DataType::Int8),
            (vec![Some(-129), Some(127)], DataType::Int16),
            (vec![Some(0), Some(32_768)], DataType::UInt16),
            (vec![Some(-1), Some(32_768)], DataType::Int32),
            (vec![Some(0), Some(4_294_967_295)], DataType::UInt32),
            (vec![Some(-1), Some(4_294_967_295)], DataType::Int64),
            (vec![None, None], DataType::Int8),
        ] {
            let (first, rest) = numbers.split_at(1);
            let given = [first, rest].map(|numbers| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) });
            assert_eq!(sent(&given)[0].data_type(), &kind);
        }
    }

    #[test]
    fn entries_of_lists_are_shortened_too() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..6));
        let names: ArrayRef = Arc::new(StringArray::from(vec!["x"; 6]));
        let fields: Fields = vec![Field::new("number", DataType::Int64, false), Field::new("name", DataType::Utf8, true)].into();
        let entries = StructArray::try_new(fields.clone(), vec![numbers, names], None).unwrap();
        let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
        let lengths = OffsetBuffer::from_lengths([2, 0, 1, 3]);
        let nulls = Some(vec![true, false, true, true].into());
        let list: ArrayRef = Arc::new(ListArray::try_new(item, lengths, Arc::new(entries), nulls).unwrap());
        let given = [list.slice(0, 2), list.slice(1, 3)];
        let sent = shortest(given.to_vec()).unwrap();
        for (given, sent) in given.iter().zip(&sent) {
            let entries = sent.as_list::<i32>().values().as_struct();
            assert_eq!([0, 1].map(|at| entries.column(at).data_type().clone()), [DataType::Int8, by(DataType::Int8)]);
            assert_eq!(cast(sent, given.data_type()).unwrap().as_ref(), given.as_ref());
        }
        assert_eq!(sent[1].as_list::<i32>().values().len(), 4, "only what is shown");
    }
}
