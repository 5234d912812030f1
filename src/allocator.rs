//! What the C library's allocator keeps.

/// Lets the allocator keep what is freed. Columns of a row group have some hundred kilobytes each, a message with a table of spans and its
/// record some megabytes, and all live for milliseconds; as it comes, glibc gives such memory back each time, and page faults take it again: a
/// quarter of what a query of a small tenant costs, a tenth of what such a table or a statement with many groups does. Does nothing with another C library.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Free bytes that an arena keeps before it gives them back to the kernel.
        const KEPT_BYTES: i32 = 64 << 20;
        /// From this size on memory is asked of the kernel, and given back, by itself. The most that glibc takes.
        const OWN_MAPPING_BYTES: i32 = 32 << 20;
        // SAFETY: mallopt takes two numbers, and no other thread is there yet. What it refuses stays as it is.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
            libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        }
    }
}
