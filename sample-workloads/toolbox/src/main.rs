//! A handful of commands for trying `kubectl exec` and `attach`: a program for WASI preview 1.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: toolbox [sleep [SECONDS] | echo WORD... | complain WORD... | cat [FILE] | upper | count | \
    write FILE WORD... | fill FILE BYTES | bytes NUMBER | env | tty | eat | exit CODE]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("toolbox: {error}");
            ExitCode::from(2)
        }
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|error| io::Error::other(format!("{text:?}: {error}")))
}

fn run(arguments: &[&str]) -> io::Result<u8> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    match arguments {
        [] | ["sleep"] => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        ["sleep", seconds] => std::thread::sleep(Duration::from_secs(number(seconds)?)),
        ["echo", words @ ..] => writeln!(output, "{}", words.join(" "))?,
        ["complain", words @ ..] => eprintln!("{}", words.join(" ")),
        ["cat"] => drop(io::copy(&mut input, &mut output)?),
        ["cat", file] => drop(io::copy(&mut File::open(file)?, &mut output)?),
        ["write", file, words @ ..] => std::fs::write(file, words.join(" "))?,
        ["fill", file, bytes] => drop(io::copy(&mut io::repeat(b'.').take(number(bytes)?), &mut File::create(file)?)?),
        // A line at a time, as one would talk to it.
        ["upper"] => {
            for line in input.lines() {
                writeln!(output, "{}", line?.to_uppercase())?;
                output.flush()?;
            }
        }
        ["count"] => {
            let (mut all, mut buffer) = (0, [0; 16 * 1024]);
            while let length @ 1.. = input.read(&mut buffer)? {
                all += length;
            }
            writeln!(output, "{all}")?;
        }
        ["bytes", count] => {
            let line: Vec<u8> = (0..64).map(|n| b'!' + n).chain([b'\n']).collect();
            let mut left = usize::try_from(number(count)?).unwrap_or(usize::MAX);
            let block: Vec<u8> = line.iter().copied().cycle().take(65 * 512).collect();
            while left > 0 {
                let part = left.min(block.len());
                output.write_all(&block[..part])?;
                left -= part;
            }
        }
        ["env"] => {
            for (name, value) in std::env::vars() {
                writeln!(output, "{name}={value}")?;
            }
        }
        ["tty"] => writeln!(output, "{} {}", io::stdin().is_terminal(), io::stdout().is_terminal())?,
        ["eat"] => {
            let mut all = Vec::new();
            loop {
                all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        ["exit", code] => return Ok(u8::try_from(number(code)?).unwrap_or(u8::MAX)),
        _ => return Err(io::Error::other(USAGE)),
    }
    output.flush()?;
    Ok(0)
}
