//! Errors of SQL: what the text of a user caused is the user's, as nowhere else in the engine.

use datafusion::common::DataFusionError;

use crate::error::{Error, ErrorKind};

/// An error of planning or running a statement that a user wrote.
pub fn sql_error(error: DataFusionError) -> Error {
    match error {
        DataFusionError::Plan(_)
        | DataFusionError::SQL(..)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::ArrowError(..)
        | DataFusionError::Execution(_)
        | DataFusionError::Diagnostic(..)
        | DataFusionError::Configuration(_) => Error::invalid(error.strip_backtrace()),
        DataFusionError::ResourcesExhausted(message) => Error::new(ErrorKind::Exhausted, message),
        DataFusionError::Context(context, inner) => sql_error(*inner).context(context),
        DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
            Ok(inner) => sql_error(inner),
            Err(shared) => DataFusionError::Shared(shared).into(),
        },
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(first) => sql_error(first),
            None => Error::internal("an empty list of errors"),
        },
        other => other.into(),
    }
}
