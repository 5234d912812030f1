"""Tables of spans as they are sent: in the fewest bytes, and in batches that fit into messages."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

#: Most bytes of a batch of spans that is written, a quarter of what a server reads in one message, and most spans.
BATCH_BYTES = 4 << 20
BATCH_SPANS = 16_384
#: Most bytes of text in a batch, dictionaries spelled out: half of what a server takes.
TEXT_BYTES = 32 << 20
#: A dictionary is one message too, and a server holds those of all columns: half of what it takes. Longer ones are spelled out.
DICTIONARY_BYTES = 1 << 20
ALL_DICTIONARIES_BYTES = 32 << 20
#: Columns of `spans` that follow from others: a server ignores them, so they are not sent.
DERIVED = (
    "trace_start_time",
    "trace_duration_nanos",
    "root_service_name",
    "root_name",
    "child_count",
    "self_time_nanos",
    "spanset",
    "critical_path_nanos",
)
#: Bytes of ids by column.
ID_BYTES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
#: Keys of dictionaries, narrowest first, and how many values they reach.
NARROW_KEYS = ((pa.int8(), 1 << 7), (pa.int16(), 1 << 15))
#: Types of whole numbers, narrowest first.
NARROW_INTS = (pa.int8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32())


def shortest(table: pa.Table) -> pa.Table:
    """`table` without columns that are ignored, ids as bytes, text that repeats as dictionaries, keys and whole numbers as narrow as they can be.

    Its dictionaries have each value once. `events` and `links` stay as they are. What would be refused still is: the server tells what is wrong.
    """
    table = table.drop_columns([name for name in DERIVED if name in table.column_names])
    table = _with_bytes_of_ids(_with_short_offsets(table))
    return _with_narrow_ints(_with_narrow_keys(_with_short_dictionaries(_with_dictionaries(table))))


def cut(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in batches that fit into a message, as far as a single row does."""
    waiting = table.to_batches(max_chunksize=BATCH_SPANS)[::-1]
    while waiting:
        batch = waiting.pop()
        if batch.num_rows > 1 and not _is_short(batch):
            half = batch.num_rows // 2
            waiting += [batch.slice(half), batch.slice(0, half)]
        elif batch.num_rows > 0:
            yield batch


def _is_short(batch: pa.RecordBatch) -> bool:
    """Whether a server takes as many bytes, and as much text."""
    sizes = [(name, *_bytes(column)) for name, column in zip(batch.schema.names, batch.columns)]
    # The text of a resource or a scope counts once, however many rows have it.
    text = sum(spelled for name, _, spelled in sizes if not name.startswith(("resource.", "instrumentation.")))
    return sum(own for _, own, _ in sizes) <= BATCH_BYTES and text <= TEXT_BYTES


def _bytes(column: pa.Array) -> tuple[int, int]:
    """Bytes of the rows without dictionaries, and of text in dictionaries for each row that shows it."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        is_text = pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
        spelled = pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() if is_text else 0
        return int(column.indices.nbytes), int(spelled or 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        parts = [column.flatten()]
    elif pa.types.is_struct(kind):
        parts = column.flatten()
    else:
        return int(column.nbytes), 0
    sizes = [_bytes(part) for part in parts]
    return sum(own for own, _ in sizes) + 8 * len(column), sum(spelled for _, spelled in sizes)


def _with_short_offsets(table: pa.Table) -> pa.Table:
    """With text as `string` that is `large_string`, as pandas has it, where a chunk is not too long for that."""
    for at, field in enumerate(table.schema):
        if field.type == pa.large_string():
            try:
                table = table.set_column(at, field.with_type(pa.string()), table.column(at).cast(pa.string()))
            except pa.ArrowInvalid:
                continue
    return table


def _with_dictionaries(table: pa.Table) -> pa.Table:
    """With text as dictionaries where a value is there twice on average. Ids have a form of their own."""
    for at, field in enumerate(table.schema):
        if field.type == pa.string() and field.name not in ID_BYTES:
            coded = table.column(at).dictionary_encode()
            values = len(coded.chunk(0).dictionary) if coded.num_chunks else 0
            if 0 < 2 * values <= len(coded) - coded.null_count:
                table = table.set_column(at, field.with_type(coded.type), coded)
    return table


def _with_short_dictionaries(table: pa.Table) -> pa.Table:
    """With dictionaries that fit into a message, and all of them into what a server holds, the others spelled out: the longest first."""
    left = ALL_DICTIONARIES_BYTES
    coded = (at for at, field in enumerate(table.schema) if pa.types.is_dictionary(field.type))
    for length, at in sorted((max((chunk.dictionary.nbytes for chunk in table.column(at).chunks), default=0), at) for at in coded):
        left -= length
        if length > DICTIONARY_BYTES or left < 0:
            field = table.schema.field(at)
            plain = field.with_type(field.type.value_type)
            # By parts, since text spelled out may be longer than an array can be.
            rows = (table.column(at).slice(first, BATCH_SPANS) for first in range(0, len(table), BATCH_SPANS))
            chunks = [chunk.cast(plain.type) for part in rows for chunk in part.chunks]
            table = table.set_column(at, plain, pa.chunked_array(chunks, plain.type))
    return table


def _with_narrow_keys(table: pa.Table) -> pa.Table:
    """With dictionaries by the narrowest keys that reach their values: in a table of spans most columns are dictionaries of few."""
    for at, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        chunks = table.column(at).chunks
        values = max((len(chunk.dictionary) for chunk in chunks), default=0)
        index = next((index for index, most in NARROW_KEYS if values <= most), field.type.index_type)
        if index.bit_width < field.type.index_type.bit_width:
            kind = pa.dictionary(index, field.type.value_type, field.type.ordered)
            narrow = [pa.DictionaryArray.from_arrays(chunk.indices.cast(index), chunk.dictionary, ordered=kind.ordered) for chunk in chunks]
            table = table.set_column(at, field.with_type(kind), pa.chunked_array(narrow, kind))
    return table


def _with_narrow_ints(table: pa.Table) -> pa.Table:
    """With whole numbers in as few bits as hold all of a column."""
    for at, field in enumerate(table.schema):
        if field.type == pa.int64():
            numbers = table.column(at)
            ends = pa.array(pc.min_max(numbers).as_py().values(), pa.int64())
            kind = next((kind for kind in NARROW_INTS if _fits(ends, kind)), field.type)
            table = table.set_column(at, field.with_type(kind), numbers.cast(kind))
    return table


def _fits(numbers: pa.Array, kind: pa.DataType) -> bool:
    try:
        numbers.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _with_bytes_of_ids(table: pa.Table) -> pa.Table:
    """With ids as bytes, which are half as long as their digits. What is no id stays as it is: the server tells what is wrong with it."""
    for at, field in enumerate(table.schema):
        if field.name in ID_BYTES and field.type == pa.string():
            chunks = [_bytes_of_ids(chunk, ID_BYTES[field.name]) for chunk in table.column(at).chunks]
            if None not in chunks:
                kind = pa.binary(ID_BYTES[field.name])
                table = table.set_column(at, field.with_type(kind), pa.chunked_array(chunks, kind))
    return table


def _bytes_of_ids(ids: pa.Array, width: int) -> pa.Array | None:
    digits = ids.fill_null("0" * 2 * width)
    if not pc.all(pc.equal(pc.binary_length(digits), 2 * width), min_count=0).as_py():
        return None
    try:
        values = bytes.fromhex("".join(digits.to_pylist()))
    except ValueError:
        return None
    # Blanks are skipped.
    if len(values) != width * len(ids):
        return None
    bytes_of = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(ids), [None, pa.py_buffer(values)])
    return pc.if_else(ids.is_valid(), bytes_of, pa.scalar(None, bytes_of.type)) if ids.null_count else bytes_of
