//! Plain data shared between the eBPF programs and user space.
#![no_std]
