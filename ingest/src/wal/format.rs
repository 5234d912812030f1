//! The bytes of a segment (`FORMAT.md` beside this file): making them, and reading them back without trusting any.

use std::{
    fmt,
    io::{self, Read},
};

use bytes::Bytes;
use skein_engine::tenant::TenantId;

use crate::error::{Error, Result};

/// FORMAT.md, Segment: magic.
const MAGIC: [u8; 8] = *b"SKEINWAL";
/// FORMAT.md, Segment: version.
const VERSION: u32 = 4;
/// FORMAT.md, Segment: the oldest version that is read.
const VERSION_MIN: u32 = 1;
/// FORMAT.md, Segment: where the records begin.
pub(super) const SEGMENT_HEADER_BYTES: usize = 16;
/// FORMAT.md, Record: body length and checksum.
const RECORD_HEADER_BYTES: usize = 8;
/// FORMAT.md, Record: smallest body, a tenant length and a tenant of one byte.
const BODY_BYTES_MIN: usize = 2;
/// FORMAT.md, Record: largest body.
const BODY_BYTES_MAX: usize = 1 << 30;

/// The first bytes of every segment.
pub(super) fn segment_header() -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let checksum = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// A record ready to write: its bytes are [`Record::head`], the tenant's, then the payload's parts. Nothing is copied.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) head: [u8; RECORD_HEADER_BYTES + 1],
    pub(super) tenant: TenantId,
    pub(super) payload: Vec<Bytes>,
    pub(super) payload_bytes: usize,
}

impl Record {
    /// Frames `payload`. Errors: `Invalid` when it is larger than a record may be.
    pub(super) fn new(tenant: TenantId, payload: Vec<Bytes>) -> Result<Self> {
        let payload_bytes = payload.iter().map(Bytes::len).sum::<usize>();
        let body_bytes = 1 + tenant.as_str().len() + payload_bytes;
        if body_bytes > BODY_BYTES_MAX {
            return Err(Error::invalid(format!("request of {payload_bytes} bytes is larger than a log record may be ({BODY_BYTES_MAX} bytes)")));
        }
        let length = (body_bytes as u32).to_le_bytes();
        let tenant_length = u8::try_from(tenant.as_str().len()).map_err(|_| Error::internal("tenant id longer than 255 bytes"))?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&length);
        checksum.update(&[tenant_length]);
        checksum.update(tenant.as_str().as_bytes());
        payload.iter().for_each(|part| checksum.update(part));
        let mut head = [0; RECORD_HEADER_BYTES + 1];
        head[..4].copy_from_slice(&length);
        head[4..8].copy_from_slice(&checksum.finalize().to_le_bytes());
        head[8] = tenant_length;
        Ok(Self { head, tenant, payload, payload_bytes })
    }

    /// Bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        (self.head.len() + self.tenant.as_str().len() + self.payload_bytes) as u64
    }
}

/// Why reading a segment ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The segment header is cut short.
    ShortSegmentHeader,
    /// The first bytes are not the log's.
    WrongMagic,
    /// Written by a version this one does not know.
    UnknownVersion(u32),
    /// The segment header's checksum does not match.
    WrongHeaderChecksum,
    /// A record header is cut short.
    ShortRecordHeader,
    /// A body length that no record has, such as the zeros of a file system that lost the data and kept the size.
    WrongLength(u32),
    /// A record's body goes beyond the end of the file.
    ShortBody,
    /// A record's checksum does not match.
    WrongChecksum,
    /// The checksum matches and the tenant is none.
    WrongTenant,
    /// The file cannot be read on.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortSegmentHeader => f.write_str("segment header cut short"),
            Self::WrongMagic => f.write_str("not a log segment"),
            Self::UnknownVersion(version) => write!(f, "unknown version {version}"),
            Self::WrongHeaderChecksum => f.write_str("wrong checksum of the segment header"),
            Self::ShortRecordHeader => f.write_str("record header cut short"),
            Self::WrongLength(length) => write!(f, "impossible record length {length}"),
            Self::ShortBody => f.write_str("record cut short"),
            Self::WrongChecksum => f.write_str("wrong checksum of a record"),
            Self::WrongTenant => f.write_str("record of an impossible tenant"),
            Self::Unreadable(kind) => write!(f, "unreadable: {kind}"),
        }
    }
}

/// What a replay of one segment found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Records yielded, each with a checksum that matched.
    pub records: u64,
    /// Bytes of the file up to the end of the last good record.
    pub good_bytes: u64,
    /// Bytes after that, given up.
    pub lost_bytes: u64,
    /// Why they were given up; `None` when the file ends with a whole record.
    pub damage: Option<Damage>,
}

/// Reads a segment of `file_bytes` bytes from its beginning and yields its good records in order. Damage is in the report.
/// Errors: only what `visit` returns, which ends the reading.
/// Cost: one allocation a record, of at most the bytes left in the file; the payload is a slice of it.
pub fn scan(mut source: impl Read, file_bytes: u64, mut visit: impl FnMut(&TenantId, Bytes) -> Result<()>) -> Result<ReplayReport> {
    let mut report = ReplayReport::default();
    if file_bytes > 0 {
        report.damage = match read_segment_header(&mut source, file_bytes) {
            Err(damage) => Some(damage),
            Ok(()) => {
                report.good_bytes = SEGMENT_HEADER_BYTES as u64;
                loop {
                    match read_record(&mut source, file_bytes - report.good_bytes) {
                        Ok(None) => break None,
                        Err(damage) => break Some(damage),
                        Ok(Some((tenant, payload, bytes))) => {
                            visit(&tenant, payload)?;
                            report.records += 1;
                            report.good_bytes += bytes;
                        }
                    }
                }
            }
        };
    }
    report.lost_bytes = file_bytes - report.good_bytes;
    Ok(report)
}

fn read_segment_header(source: &mut impl Read, file_bytes: u64) -> Result<(), Damage> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    if file_bytes < SEGMENT_HEADER_BYTES as u64 {
        return Err(Damage::ShortSegmentHeader);
    }
    fill(source, &mut header, Damage::ShortSegmentHeader)?;
    let (magic, rest) = header.split_at(8);
    let (version, checksum) = (le_u32(rest), le_u32(&rest[4..]));
    if magic != MAGIC {
        Err(Damage::WrongMagic)
    } else if checksum != crc32fast::hash(&header[..12]) {
        Err(Damage::WrongHeaderChecksum)
    } else if !(VERSION_MIN..=VERSION).contains(&version) {
        Err(Damage::UnknownVersion(version))
    } else {
        Ok(())
    }
}

/// The next record's tenant, payload and size in the file; `None` at the clean end.
fn read_record(source: &mut impl Read, bytes_left: u64) -> Result<Option<(TenantId, Bytes, u64)>, Damage> {
    if bytes_left == 0 {
        return Ok(None);
    }
    if bytes_left < RECORD_HEADER_BYTES as u64 {
        return Err(Damage::ShortRecordHeader);
    }
    let mut header = [0; RECORD_HEADER_BYTES];
    fill(source, &mut header, Damage::ShortRecordHeader)?;
    let (length, checksum) = (le_u32(&header), le_u32(&header[4..]));
    let body_bytes = length as usize;
    if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&body_bytes) {
        return Err(Damage::WrongLength(length));
    }
    if body_bytes as u64 > bytes_left - RECORD_HEADER_BYTES as u64 {
        return Err(Damage::ShortBody);
    }
    let mut body = vec![0; body_bytes];
    fill(source, &mut body, Damage::ShortBody)?;
    let mut actual = crc32fast::Hasher::new();
    actual.update(&header[..4]);
    actual.update(&body);
    if actual.finalize() != checksum {
        return Err(Damage::WrongChecksum);
    }
    let body = Bytes::from(body);
    let tenant_end = 1 + usize::from(body[0]);
    let tenant = body.get(1..tenant_end).and_then(|id| std::str::from_utf8(id).ok()).and_then(|id| TenantId::parse(id).ok());
    let tenant = tenant.ok_or(Damage::WrongTenant)?;
    Ok(Some((tenant, body.slice(tenant_end..), (RECORD_HEADER_BYTES + body_bytes) as u64)))
}

fn fill(source: &mut impl Read, target: &mut [u8], short: Damage) -> Result<(), Damage> {
    source.read_exact(target).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => short,
        kind => Damage::Unreadable(kind),
    })
}

/// The first four bytes of `bytes`, which must be there.
fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
