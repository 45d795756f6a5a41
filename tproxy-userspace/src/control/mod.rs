//! The kernel half: programs, maps, routes, sysctls, links.
