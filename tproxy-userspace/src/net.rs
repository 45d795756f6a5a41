//! Sockets: every option that is set on them, and the only unsafe code of the userspace half.
