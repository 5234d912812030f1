//! Query parameters of a URL, read with the texts that Tempo has for wrong ones.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Query},
    http::{Uri, request::Parts},
};
use skein_engine::{
    clock::{nanos, parse_duration},
    error::{Error, Result},
};

use crate::{asks::Times, window};

/// The parameters in their order; an empty value is as good as none.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn of(uri: &Uri) -> Self {
        Self(Query::<Vec<(String, String)>>::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default())
    }

    /// The first value of a parameter that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter that are not empty.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// A number without sign; 0 when it is missing. Errors: `Invalid`.
    pub(crate) fn number(&self, name: &str) -> Result<u32> {
        self.get(name).map_or(Ok(0), |text| {
            text.parse::<u32>().map_err(|_| {
                let why = if text.bytes().all(|byte| byte.is_ascii_digit()) { "value out of range" } else { "invalid syntax" };
                Error::invalid(format!("invalid {name}: strconv.ParseUint: parsing {text:?}: {why}"))
            })
        })
    }

    /// A whole number with a sign. Errors: `Invalid`.
    pub(crate) fn signed(&self, name: &str) -> Result<Option<i64>> {
        let parse = |text: &str| {
            text.parse::<i64>().map_err(|_| Error::invalid(format!("invalid {name}: strconv.ParseInt: parsing {text:?}: invalid syntax")))
        };
        self.get(name).map(parse).transpose()
    }

    /// A duration in whole milliseconds; 0 when it is missing. Errors: `Invalid`.
    pub(crate) fn milliseconds(&self, name: &str) -> Result<u32> {
        self.get(name).map_or(Ok(0), |text| {
            parse_duration(text)
                .filter(|_| !text.contains(['d', 'w']))
                .and_then(|duration| u32::try_from(nanos(duration) / 1_000_000).ok())
                .ok_or_else(|| Error::invalid(format!("invalid {name}: time: invalid duration {text:?}")))
        })
    }

    /// The window of a search: whole seconds only.
    pub(crate) fn search_times(&self) -> Result<Times> {
        Ok(Times { start: self.number("start")?, end: self.number("end")?, since: self.get("since").map(str::to_owned) })
    }

    /// The window of a request for names or values: also nanoseconds, fractional seconds and RFC 3339.
    pub(crate) fn tag_times(&self) -> Result<Times> {
        let seconds = |name| self.get(name).map_or(Ok(0), |text| window::parse_time_seconds(name, text));
        Ok(Times { start: seconds("start")?, end: seconds("end")?, since: self.get("since").map(str::to_owned) })
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.uri))
    }
}
