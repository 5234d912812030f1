//! Calls between services: spans whose parent is a span of another service.

use arrow::array::{ArrayRef, BooleanArray, Int32Array, StringArray};

use super::{arrays, groups::ServiceCodes};
use crate::{
    error::Result,
    exec::eval::{
        Frame,
        vector::{kind_of, status_of},
    },
    spans::schema::Column,
    traceql::{Kind, Status},
};

/// The columns that calls are found by.
pub const CALLS: [Column; 2] = [Column::ParentDistance, Column::Service];

/// How producers and consumers are connected.
const MESSAGING: &str = "messaging_system";

/// The calls of a frame.
#[derive(Debug)]
pub struct Calls<'a> {
    frame: &'a Frame,
    distance: &'a [i32],
    services: ServiceCodes,
}

impl<'a> Calls<'a> {
    /// The calls of `frame`, which has loaded [`CALLS`]. Errors: `Internal`, `Data`.
    pub fn of(frame: &'a Frame) -> Result<Self> {
        Ok(Self { frame, distance: frame.small_ints(Column::ParentDistance)?.values(), services: ServiceCodes::of(frame)? })
    }

    fn parent(&self, row: usize) -> Option<usize> {
        (self.distance[row] > 0).then(|| row - self.distance[row] as usize)
    }

    /// Whether the span of `row` was called by another service.
    pub fn is_call(&self, row: usize) -> bool {
        let caller = self.parent(row).and_then(|parent| self.services.code(parent));
        matches!((caller, self.services.code(row)), (Some(client), Some(server)) if client != server)
    }

    /// The services of the parents.
    pub fn clients(&self) -> Result<ArrayRef> {
        let code = |row| self.parent(row).and_then(|parent| self.services.code(parent));
        let codes = Int32Array::from_iter((0..self.frame.len()).map(|row| code(row).map(|code| code as i32)));
        arrays::dictionary(codes, StringArray::from_iter_values(self.services.names.iter()))
    }

    /// `messaging_system` where the parent is a producer or the span a consumer, else empty. [`Column::Kind`] is loaded.
    pub fn connections(&self) -> Result<ArrayRef> {
        let kinds = self.frame.small_ints(Column::Kind)?;
        let kind = |row: usize| kind_of(kinds.value(row));
        let messaging = |row| kind(row) == Kind::Consumer || self.parent(row).is_some_and(|parent| kind(parent) == Kind::Producer);
        let codes = Int32Array::from_iter_values((0..self.frame.len()).map(|row| i32::from(messaging(row))));
        arrays::dictionary(codes, StringArray::from(vec!["", MESSAGING]))
    }

    /// Whether either side has status error. [`Column::StatusCode`] is loaded.
    pub fn failures(&self) -> Result<BooleanArray> {
        let codes = self.frame.small_ints(Column::StatusCode)?;
        let failed = |row: usize| status_of(codes.value(row)) == Status::Error;
        Ok((0..self.frame.len()).map(|row| Some(failed(row) || self.parent(row).is_some_and(failed))).collect())
    }
}
