//! The program `tproxy-bpf`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
