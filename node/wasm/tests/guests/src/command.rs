//! Does what its arguments say: the tests' command, built for both versions of WASI.

use std::io::{Read, Write};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Err(error) = run(&arguments) {
        println!("error: {error}");
        std::process::exit(2);
    }
}

fn run(arguments: &[&str]) -> std::io::Result<()> {
    match arguments {
        ["say", words @ ..] => println!("{}", words.join(" ")),
        ["exit", code] => std::process::exit(code.parse().unwrap_or(99)),
        ["panic"] => panic!("as asked"),
        ["spin"] => loop {
            std::hint::black_box(arguments);
        },
        ["eat"] => {
            let mut all = Vec::new();
            loop {
                all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        ["env"] => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        ["write", path, text] => std::fs::write(path, text)?,
        ["read", path] => println!("{}", std::fs::read_to_string(path)?),
        #[cfg(target_env = "p2")]
        ["echo", address] => {
            let listener = std::net::TcpListener::bind(address)?;
            println!("listening on {}", listener.local_addr()?);
            loop {
                let (mut stream, peer) = listener.accept()?;
                println!("from {}", peer.ip());
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..length])?;
                }
            }
        }
        #[cfg(target_env = "p2")]
        ["send", address, text] => {
            let mut stream = std::net::TcpStream::connect(address)?;
            println!("{} to {}", stream.local_addr()?.ip(), stream.peer_addr()?);
            stream.write_all(text.as_bytes())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut back = String::new();
            stream.read_to_string(&mut back)?;
            println!("got {back}");
        }
        #[cfg(target_env = "p2")]
        ["udp", address, text] => {
            let server = std::net::UdpSocket::bind("0.0.0.0:0")?;
            let client = std::net::UdpSocket::bind("0.0.0.0:0")?;
            let mut target = server.local_addr()?;
            if *address != "self" {
                target = address.parse().map_err(std::io::Error::other)?;
            }
            client.send_to(text.as_bytes(), target)?;
            let mut buffer = [0; 1024];
            let (length, from) = server.recv_from(&mut buffer)?;
            println!("got {} from {}", String::from_utf8_lossy(&buffer[..length]), from.ip());
        }
        #[cfg(target_env = "p2")]
        ["resolve", name] => {
            use std::net::ToSocketAddrs as _;
            for address in (*name, 0).to_socket_addrs()? {
                println!("{}", address.ip());
            }
        }
        _ => std::process::exit(98),
    }
    let _ = (std::io::stdin().read(&mut []), std::io::stdout().flush());
    Ok(())
}
