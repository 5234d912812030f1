//! Errors of SQL: what the text of a user caused is the user's, as nowhere else in the engine.

use arrow::error::ArrowError;
use datafusion::common::DataFusionError;

use crate::error::{Error, ErrorKind};

/// An error of planning or running a statement that a user wrote.
pub fn sql_error(error: DataFusionError) -> Error {
    match error {
        DataFusionError::Context(context, inner) => sql_error(*inner).context(context),
        DataFusionError::Collection(errors) => match errors.into_iter().next() {
            Some(first) => sql_error(first),
            None => Error::internal("an empty list of errors"),
        },
        error => match kind_of(&error) {
            Some(ErrorKind::Exhausted) => Error::exhausted(exhausted(error.strip_backtrace())),
            Some(kind) => Error::new(kind, shortened(error.strip_backtrace())),
            None => error.into(),
        },
    }
}

/// Longest text of DataFusion's that is handed on, in bytes: it names all columns where one is not known, and gRPC clients take 8 KiB of
/// trailers at most.
const TEXT_BYTES_MAX: usize = 1_000;

fn shortened(text: String) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text;
    }
    let columns = if text.contains("Valid fields are") { " (information_schema.columns has all columns)" } else { "" };
    format!("{}…{columns}", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)])
}

/// Whose fault an error is, as far as DataFusion's kinds tell it.
fn kind_of(error: &DataFusionError) -> Option<ErrorKind> {
    match error {
        DataFusionError::Plan(_)
        | DataFusionError::SQL(..)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Execution(_)
        | DataFusionError::Diagnostic(..)
        | DataFusionError::Configuration(_) => Some(ErrorKind::Invalid),
        DataFusionError::ResourcesExhausted(_) => Some(ErrorKind::Exhausted),
        DataFusionError::ArrowError(error, _) => match &**error {
            ArrowError::ExternalError(source) => kind_of_source(&**source),
            ArrowError::MemoryError(_) => Some(ErrorKind::Exhausted),
            _ => Some(ErrorKind::Invalid),
        },
        DataFusionError::External(source) => kind_of_source(&**source),
        // What DataFusion makes of a pattern that is too large.
        DataFusionError::Internal(text) if text.contains("Regular expression did not compile") => Some(ErrorKind::Invalid),
        DataFusionError::Context(_, inner) => kind_of(inner),
        DataFusionError::Shared(inner) => kind_of(inner),
        DataFusionError::Collection(errors) => errors.first().and_then(kind_of),
        _ => None,
    }
}

/// Of an error of ours its own kind; others are of libraries that take what the user wrote, such as regular expressions.
fn kind_of_source(source: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<ErrorKind> {
    match (source.downcast_ref::<Error>(), source.downcast_ref::<DataFusionError>()) {
        (Some(error), _) => Some(error.kind()),
        (_, Some(error)) => kind_of(error),
        _ => Some(ErrorKind::Invalid),
    }
}

/// The text of a refusal; where an operator lacks memory and cannot go on without files, with what can be done.
fn exhausted(text: String) -> String {
    let text = text.strip_prefix("Resources exhausted: ").unwrap_or(&text);
    if text.contains("_memory_bytes") {
        return text.to_owned();
    }
    format!(
        "{text}: the statement needs more memory than one may take (read.max_sql_memory_bytes) or than is left of that of all queries \
         (query_frontend.max_memory_bytes): ask for less, or raise the limit"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_user_wrote_is_the_users_fault_however_it_is_wrapped() {
        let check = |error: DataFusionError, kind: ErrorKind, part: &str| {
            let found = sql_error(error);
            assert!(found.kind() == kind && found.to_string().contains(part), "{found:?}");
        };
        let plan = || DataFusionError::Plan("no such column".into());
        check(plan(), ErrorKind::Invalid, "no such column");
        check(DataFusionError::Context("planning".into(), Box::new(plan())), ErrorKind::Invalid, "planning: Error during planning: no such column");
        let shared = Arc::new(plan());
        check(DataFusionError::Shared(shared.clone()), ErrorKind::Invalid, "no such column");
        drop(shared);
        check(DataFusionError::External(Box::new(Error::data("block 5"))), ErrorKind::Data, "block 5");
        check(DataFusionError::External("a broken pattern".into()), ErrorKind::Invalid, "a broken pattern");
        check(DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None), ErrorKind::Invalid, "Divide by zero");
        check(DataFusionError::ResourcesExhausted("the sort".into()), ErrorKind::Exhausted, "the sort: the statement needs more memory");
        check(DataFusionError::Internal("Regular expression did not compile: too big".into()), ErrorKind::Invalid, "too big");
        check(DataFusionError::Internal("a bug".into()), ErrorKind::Internal, "");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = |fields: usize| format!("No field named x. Valid fields are {}", "ä".repeat(fields));
        assert_eq!(shortened(text(10)), text(10));
        let cut = shortened(text(5_000));
        assert!(cut.len() < TEXT_BYTES_MAX + 60 && cut.ends_with("ä… (information_schema.columns has all columns)"), "{cut}");
    }
}
