//! Skein: traces in, durable, columnar, searchable, with Grafana Tempo's interfaces.
//!
//! | module | owns |
//! |---|---|
//! | [`allocator`] | what the C library's allocator keeps |
//! | [`cli`] | the subcommands; [`cli::serve`] is the server |
//! | [`config`] | Tempo's YAML and flags, to settings |
//! | [`roles`] | the parts of the process, their start and their end |
//! | [`runtime`] | the threads |

#![allow(unreachable_pub, reason = "in a binary, pub means for the modules beside it")]

mod allocator;
mod cli;
mod config;
mod roles;
mod runtime;

fn main() -> std::process::ExitCode {
    allocator::keep_freed_memory();
    cli::run()
}
