//! Where the seeds of the targets come from: the writers, and texts with a bit of everything that a format has.
//!
//! `cargo test -p fuzz-targets -- --ignored` writes those that are not there. Seeds that were found, not made, lie beside
//! them.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use etherparse::PacketBuilder;
use ipnet::IpNet;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tproxy_userspace::data::dns::wire::{Question, ask};
use tproxy_userspace::data::outbound::wire::{Command, datagram_header, request};
use tproxy_userspace::policy::domain::Domain;
use tproxy_userspace::policy::formats::{Entries, Format};

use crate::write::{self, Value};
use crate::{CORPUS, Target, rewrite};

type Seeds = Vec<(String, Vec<u8>)>;

fn entries(prefixes: &[&str], domains: &[&str]) -> Entries {
    Entries {
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
        domains: domains.iter().map(|text| text.parse().unwrap()).collect(),
        passed_over: Vec::new(),
    }
}

fn some_entries() -> [Entries; 3] {
    [
        entries(
            &["1.0.1.0/24", "1.0.2.0/23", "2001:250::/35", "192.0.2.7/32"],
            &[],
        ),
        entries(
            &[],
            &[
                "example.com",
                ".example.net",
                "full:www.example.org",
                "keyword:ads",
                "regexp:^ad[0-9]+\\.",
            ],
        ),
        entries(
            &["10.0.0.0/8"],
            &[
                "xn--fiqs8s",
                "full:a.b.c.example",
                "a.example",
                ".a.example",
            ],
        ),
    ]
}

/// More than the writers make.
fn texts(format: Format) -> &'static [&'static str] {
    match format {
        Format::Plain => &[
            "\u{feff}# head\r\n 192.0.2.0/24 \r\n10.0.0.0/8#x\n2001:db8::1 ; one\n198.51.100.1 - 198.51.100.4\nExample.COM\n\
             .example.net // below\nkeyword:Ads\nregexp:^a//[#;]b$ # odd\ndomain:x.example @cn\nbücher.example.\n",
        ],
        Format::Mihomo => {
            &["+.example.com\nwww.example.org\n.example.net\n*.x.example\n192.0.2.0/24\n"]
        }
        Format::Delegated => &[
            "2|apnic|20261101|3|19830613|20261031|+1000\napnic|*|ipv4|*|3|summary\napnic|CN|ipv4|1.0.1.0|256|20110414|allocated\n\
             apnic|CN|ipv4|1.0.2.0|768|20110414|assigned|x|y\napnic|CN|ipv6|2001:250::|35|20000426|allocated\napnic|CN|asn|4134|1|20000426|allocated\n",
        ],
        Format::Nft => &[
            "table inet filter {\n\tset cn {\n\t\ttype ipv4_addr\n\t\telements = { 1.0.1.0/24 timeout 1h expires 2s,\n\t\t\t1.0.2.0-1.0.3.255, # two\n\
             \t\t\t2001:db8::1 comment \"a, } b\" }\n\t}\n\tchain c { ip daddr @cn accept; }\n}\nadd element inet filter cn { 1.0.8.0/21 }\ndefine CN = {\n1.0.32.0/19,\n}\n",
        ],
        Format::NftJson => &[
            "{\"nftables\":[{\"metainfo\":{}},{\"set\":{\"name\":\"cn\",\"elem\":[\"192.0.2.1\",{\"prefix\":{\"addr\":\"1.0.1.0\",\"len\":24}},{\"range\":[\"1.0.2.0\",\
             \"1.0.3.255\"]},{\"elem\":{\"val\":{\"prefix\":{\"addr\":\"2001:db8::\",\"len\":32}},\"timeout\":30}}]}},{\"add\":{\"element\":{\"elem\":[\"192.0.2.9\"]}}}]}",
        ],
        Format::Ipset => &[
            "create cn hash:net family inet hashsize 1024 maxelem 65536\nadd cn 1.0.1.0/24\nadd cn 1.0.2.1 timeout 30\nadd -exist cn 1.0.8.0-1.0.8.5\nCOMMIT\n",
        ],
        Format::SingBox => &[
            "{\"version\":5,\"rules\":[{\"domain\":\"www.example.org\",\"domain_suffix\":[\"example.com\",\".example.net\"],\"ip_cidr\":[\"192.0.2.9/24\"]},\
             {\"domain_regex\":\"^x\",\"domain_keyword\":\"a\"},{\"domain\":[\"y\"],\"port\":443},{\"domain\":[\"n.example\"],\"invert\":true},{\"type\":\"logical\",\"mode\":\"or\",\
             \"rules\":[{\"domain\":\"o.example\"}]},{\"type\":\"logical\",\"mode\":\"and\",\"rules\":[{\"domain\":\"q\"},{\"port\":80}]}]}",
        ],
        Format::Clash => &[
            "DOMAIN-SUFFIX,example.com\nDOMAIN,WWW.example.org,PROXY\nDOMAIN-KEYWORD,ads\nhost-suffix, .x.example, proxy\nIP-CIDR,192.0.2.9/24,no-resolve\n\
             IP-CIDR6,2001:db8::/32 // six\nPROCESS-NAME,curl\nDOMAIN-REGEX,^a{1,2}\\.b$\nDOMAIN-WILDCARD,a?.*.example\n",
            "# head\npayload:\n  - '+.example.com'\n  - \"www.example.org\" # one\n  - .example.net\n- 192.0.2.0/24\n  - DOMAIN-SUFFIX,x.example\n",
        ],
        Format::Dnsmasq => &[
            "# x\nserver=/example.com/114.114.114.114#53 # way\nserver=/a.example/B.example/192.0.2.1\nipset=/x.example/set4,set6\nnftset=/y.example/4#inet#t#s\n\
             local=/z.example/\nserver=192.0.2.1\naddress=/#/0.0.0.0\nno-resolv\n",
        ],
        Format::Hosts => &[
            "127.0.0.1 localhost\n::1 ip6-localhost\n0.0.0.0 Ads.example track.example # both\nfe80::1%lo0 localhost\n",
        ],
        Format::AdGuard => &[
            "[Adblock Plus 2.0]\n! Title: x\n||example.com^\n||*.example.net^\n||ads*.example.org^$important\n@@||good.example^\n||x.example^$app=y\nplain.example\n\
             /^ad[0-9]+\\./\n0.0.0.0 host.example\nsite.example##.banner\n||cdn.example/ads/*\n||192.0.2.1^\n",
        ],
        Format::GeoIp | Format::GeoSite | Format::Mmdb | Format::Srs | Format::Mrs => &[],
    }
}

fn ranges() -> Vec<(IpAddr, IpAddr)> {
    [("1.0.1.0", "1.0.3.255"), ("2001:db8::", "2001:db8::ffff")]
        .map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()))
        .to_vec()
}

fn binary(format: Format) -> Vec<Vec<u8>> {
    match format {
        Format::GeoIp => {
            let nets = |text: &str| vec![text.parse::<IpNet>().unwrap()];
            vec![
                [
                    write::geoip("AD", &nets("192.0.2.0/24"), false),
                    write::geoip("CN", &nets("128.0.0.0/1"), true),
                ]
                .concat(),
            ]
        }
        Format::GeoSite => vec![
            write::geosite(
                "CN",
                &[
                    (2, "google.com", &[]),
                    (3, "www.google.cn", &["ads"]),
                    (0, "goog", &["ads", "x"]),
                    (1, "^g", &["ads"]),
                ],
            ),
            write::geosite("CN@ADS", &[(2, "example.com", &["!cn"])]),
        ],
        Format::Srs => {
            let conditions = [
                vec![0, 1, 0, 28],
                write::srs_addresses(5, &ranges()),
                vec![9, 2, 0, 80, 1, 187],
                write::srs_texts(11, &["curl"]),
                vec![18, 1, 1, 19],
                vec![21, 1, 2, 1, 4, 10, 0, 0, 0, 8],
                vec![22, 1, 4, 10, 0, 0, 0, 8],
                [&[16], &write::srs_names(&["x".to_owned()])[1..]].concat(),
                write::srs_texts(23, &["^com"]),
            ];
            let keyword = write::srs_rule(&[write::srs_texts(3, &["or"])], false);
            vec![write::srs(
                5,
                &[
                    write::srs_rule(&conditions, false),
                    write::srs_logical(1, &[keyword.clone(), keyword.clone()]),
                    write::srs_logical(0, std::slice::from_ref(&keyword)),
                    write::srs_rule(&[keyword], true),
                ],
            )]
        }
        Format::Mrs => vec![write::zstd(&write::mrs_addresses(&ranges()))],
        Format::Mmdb => {
            let country = |code| {
                Value::Map(vec![(
                    "country",
                    Value::Map(vec![("iso_code", Value::Text(code))]),
                )])
            };
            let records = [
                country("CN"),
                Value::Map(vec![("registered_country", Value::Pointer(9))]),
                Value::Array(vec![Value::Text("cn"), Value::Text("private")]),
                Value::Map(vec![("autonomous_system_number", Value::Number(4134))]),
            ];
            [(24, 6, true), (28, 4, false), (32, 6, false)]
                .map(|(bits, version, aliases)| {
                    let networks = [
                        "1.0.1.0/24",
                        "1.0.2.0/23",
                        "192.0.2.0/24",
                        "198.51.100.7/32",
                    ];
                    let networks: Vec<(IpNet, usize)> = networks
                        .map(|text| text.parse().unwrap())
                        .into_iter()
                        .zip(0..)
                        .collect();
                    write::mmdb(bits, version, &networks, &records, aliases)
                })
                .into()
        }
        _ => Vec::new(),
    }
}

fn of_format(format: Format) -> Seeds {
    let written = some_entries()
        .into_iter()
        .map(|entries| rewrite::what_it_can_say(format, &entries))
        .filter(|entries| !entries.prefixes.is_empty() || !entries.domains.is_empty())
        .map(|entries| rewrite::written(format, &entries));
    let texts = texts(format).iter().map(|text| text.as_bytes().to_vec());
    numbered("made", written.chain(binary(format)).chain(texts))
}

fn numbered(start: &str, files: impl IntoIterator<Item = Vec<u8>>) -> Seeds {
    let files = files.into_iter().zip(1..);
    files
        .map(|(file, number)| (format!("{start}-{number}"), file))
        .collect()
}

/// The same as it is unpacked.
fn unpacked(format: Format) -> Seeds {
    let unpack = |file: Vec<u8>| {
        let mut unpacked = Vec::new();
        match format {
            Format::Srs => flate2::read::ZlibDecoder::new(&file[4..])
                .read_to_end(&mut unpacked)
                .unwrap(),
            _ => ruzstd::decoding::StreamingDecoder::new(&file[..])
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap(),
        };
        unpacked
    };
    of_format(format)
        .into_iter()
        .map(|(name, file)| (name, unpack(file)))
        .collect()
}

/// The handshake message that a client of rustls begins with.
fn hello(name: &str, protocols: usize) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = (0..protocols)
        .map(|index| format!("p{index}").into_bytes())
        .collect();
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut records = Vec::new();
    client.write_tls(&mut records).unwrap();
    records.split_off(5)
}

fn pieces(pieces: &[&[u8]]) -> Vec<u8> {
    let length = |piece: &[u8]| u16::try_from(piece.len()).unwrap().to_be_bytes();
    pieces
        .iter()
        .flat_map(|piece| [&length(piece), *piece].concat())
        .collect()
}

fn sniffers() -> Vec<(&'static str, Seeds)> {
    let message = hello("www.example.com", 2);
    let long = hello("x.example", 90);
    let record = |message: &[u8]| [&[22, 3, 1][..], &pieces(&[message])].concat();
    let frame = |message: &[u8], start: usize, end: usize| {
        let number = |number: usize| (0x4000 | number as u16).to_be_bytes();
        [
            &[6][..],
            &number(start),
            &number(end - start),
            &message[start..end],
        ]
        .concat()
    };
    let first = [
        frame(&message, 100, message.len()),
        vec![1, 0, 2, 5, 0, 1, 0, 1, 0],
    ]
    .concat();
    let second = frame(&message, 0, 120);
    let sealed = |number, frames| crate::sniff::sealed(number, frames);
    let http = [
        "GET / HTTP/1.1\r\nUser-Agent: x\r\nHost: www.example.com:8080\r\n\r\n",
        "\r\nCONNECT a.example:443 HTTP/1.1\r\n",
        "GET http://me:pw@A.example:80/@x:1?b HTTP/1.0\r\n",
    ];
    let tcp = http.map(|text| [b"\x07", text.as_bytes()].concat());
    let tcp = tcp.into_iter().chain([
        [&[40], &*record(&message)].concat(),
        [&[255], &*record(&long)].concat(),
    ]);
    vec![
        ("sniff-tcp", numbered("made", tcp)),
        (
            "sniff-tls",
            numbered(
                "made",
                [[&[3], &*message].concat(), [&[90], &*long].concat()],
            ),
        ),
        (
            "sniff-quic",
            numbered(
                "made",
                [
                    pieces(&[&sealed(0, &first), &sealed(1, &second)]),
                    pieces(&[&[sealed(0, &first), sealed(1, &second)].concat()]),
                ],
            ),
        ),
        (
            "sniff-quic-frames",
            numbered(
                "made",
                [
                    [&[0][..], &pieces(&[&first, &second])].concat(),
                    [&[1][..], &pieces(&[&message]), &[30, 3, 1, 7, 9]].concat(),
                    [&[1][..], &pieces(&[&long]), &[90, 3, 1, 7, 9, 200, 100, 50]].concat(),
                ],
            ),
        ),
    ]
}

fn dns() -> Vec<(&'static str, Seeds)> {
    let question = |name: &[u8], kind| Question {
        name: name.into(),
        kind,
        class: 1,
    };
    let name = b"\x03www\x07example\x03com\0";
    let (a, mx) = (question(name, 1), question(name, 15));
    let queries = [
        ask(7, &a, false, true, false),
        ask(7, &mx, true, false, true),
        ask(7, &question(b"\0", 255), true, false, false),
    ];
    let answer = |records: [u16; 3], parts: &[&[u8]]| {
        let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1];
        bytes.extend(records.iter().flat_map(|count| count.to_be_bytes()));
        bytes.extend(name);
        [&bytes, &[0, 1, 0, 1][..], &parts.concat()].concat()
    };
    let address = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x01";
    let alias = b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x02\xc0\x10";
    let soa = b"\xc0\x10\0\x06\0\x01\0\0\x0e\x10\0\x16\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05";
    let opt = b"\0\0\x29\x04\xd0\0\0\x80\0\0\x04\0\x0c\0\0";
    let responses = [
        answer([2, 0, 1], &[alias, address, opt]),
        answer([0, 1, 0], &[soa]),
        answer([1, 1, 2], &[address, soa, opt, address]),
    ];
    vec![
        ("dns-query", numbered("made", queries)),
        ("dns-response", numbered("made", responses)),
    ]
}

fn packets() -> Seeds {
    let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut files = Vec::new();
    let mut add = |builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>| {
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"abc").unwrap();
        files.push(bytes);
    };
    add(ethernet()
        .ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64)
        .tcp(40_000, 443, 1, 9)
        .syn());
    add(ethernet()
        .single_vlan(7.try_into().unwrap())
        .ipv6([1; 16], [2; 16], 64)
        .tcp(40_000, 443, 1, 9)
        .ack(3));
    for builder in [
        ethernet()
            .ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64)
            .udp(40_000, 53),
        ethernet().ipv6([1; 16], [2; 16], 64).udp(40_000, 53),
    ] {
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"abc").unwrap();
        files.push(bytes);
    }
    // Options, then a fragment header, before TCP.
    let mut deep = [
        &[0; 12][..],
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 0, 64],
        &[1; 32],
    ]
    .concat();
    deep.extend([
        60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9,
    ]);
    deep.extend([0x9c, 0x40, 1, 187, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 9]);
    files.push(deep);
    numbered("made", files)
}

const CONFIGURATION: &str = "stage = 3\non_proxy_down = \"drop\"\n[lan]\ninterfaces = [\"eth0\", \"br-*\"]\nsources = [\"192.168.0.0/16\"]\n[wan]\ninterfaces = [\"default\"]\n\
    [[outbound]]\nname = \"proxy\"\nurl = \"socks5://user:password@[2001:db8::1]:1080\"\n[[outbound]]\nname = \"direct\"\nurl = \"direct://\"\n[bypass]\nprivate = true\nprefixes = [\"10.0.0.0/8\", \"2001:db8::1\"]\n\
    files = [\"china_ip_list.txt\", \"geoip.dat:cn\"]\n[exempt]\nuids = [1000, \"root\"]\ngids = [5]\ncgroups = [\"system.slice/x.service\"]\nmarks = [\"0x100/0x100\"]\n\
    [tcp]\nidle = \"2h\"\nconnect_timeout = \"10s\"\nkeepalive = \"1m30s\"\nmax_connections = 100\n[udp]\nidle = \"5m\"\ndns_idle = \"10s\"\nmax_associations = 4096\n[gateway]\nforward = true\nmasquerade = true\naccount = true\n[proxy]\nport = 1\ndrain = \"0s\"\n";

/// What the tests of the import read.
fn samples(names: &[&str]) -> Seeds {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tproxy-userspace/src/import/tests/samples");
    let read = |name: &&str| {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        ((*name).to_owned(), bytes)
    };
    names.iter().map(read).collect()
}

fn all() -> Vec<(String, Seeds)> {
    let mut all = Vec::new();
    for format in Format::ALL {
        let name = format!("list-{format:?}").to_lowercase();
        if matches!(format, Format::Srs | Format::Mrs) {
            all.push((format!("{name}-unpacked"), unpacked(format)));
        }
        all.push((name, of_format(format)));
    }
    let any = Format::ALL.into_iter().flat_map(|format| {
        let last = of_format(format).pop();
        last.map(|(_, file)| (format!("made-{format:?}").to_lowercase(), file))
    });
    all.push(("list-any".to_owned(), any.collect()));

    let address: SocketAddr = "192.0.2.1:1080".parse().unwrap();
    let address_v6: SocketAddr = "[2001:db8::1]:1080".parse().unwrap();
    let socks = [
        datagram_header(address).as_slice().to_vec(),
        [datagram_header(address_v6).as_slice(), b"x"].concat(),
        [
            &[5, 0][..],
            &request(Command::Connect, address_v6.into())[2..],
        ]
        .concat(),
        b"\x05\0\0\x03\x04host\x04\x38".to_vec(),
        vec![5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
    ];
    let replies = [
        "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-x\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204\n\n",
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nProxy-Authenticate: NTLM\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    ];
    let names = [
        "www.example.com\nexample.com\n.com\nfull:www.example.com\nkeyword:exam\nregexp:^w+\\.\n192.0.2.0/24\n*.a?.example\ngeoip.dat:!cn@ads\n",
        "Bücher.Example.\nxn--bcher-kva.example\n中国\nkeyword:er\n.example\n",
    ];
    let prefixes = [vec![
        0x40, 2, 0, 0x40, 3, 0, 0x04, 2, 1, 9, 9, 0xfd, 0x20, 1, 2, 5, 0, 0, 1, 0xff, 0xff, 0xff,
    ]];
    let urls = [
        "ss://YWVzLTEyOC1nY206dGVzdA@192.168.100.1:8888/?plugin=#name",
        "ss://2022-blake3-aes-128-gcm:AAECAwQFBgcICQoLDA0ODw%3D%3D:AAECAwQFBgcICQoLDA0ODw==@[2001:db8::1]:1",
        "ss://YWVzLTI1Ni1nY206cGFAc3NAMTkyLjAuMi4xOjgzODg=",
        "ss://none:x@h:1?plugin=obfs-local%3Bobfs%3Dhttp",
        "trojan://p%40ss@h.example:8443/?sni=n.example&allowInsecure=0&type=tcp#tag",
        "trojan://x@[2001:db8::1]?allowInsecure=1&peer=h",
    ];
    let shadowsocks = (0..6).map(|method| [&[method, 3, 0, 200][..], &[method; 90]].concat());
    let datagram = |address: SocketAddr, payload: &[u8]| {
        let length = (payload.len() as u16).to_be_bytes();
        let header = datagram_header(address);
        [&header.as_slice()[3..], &length, b"\r\n", payload].concat()
    };
    let trojan = [
        [
            &[4],
            &datagram(address, b"abc")[..],
            &datagram(address_v6, b""),
        ]
        .concat(),
        b"\x10\x03\x04host\x04\x38\0\x01\r\nx".to_vec(),
        b"\x10HTTP/1.1 400 Bad Request\r\n".to_vec(),
    ];
    let api = [
        "gateway.lan:9090\ninfo,tproxy_userspace::data=debug",
        "[2001:db8::1]:80\nwarn,a[b{c=1}]=trace,off",
        "192.0.2.1\ntrace",
    ];
    let others = [
        ("api", numbered("made", api.map(Into::into))),
        ("config", numbered("made", [CONFIGURATION.into()])),
        ("connect", numbered("made", replies.map(Into::into))),
        ("import-ipset", samples(&["near.ipset"])),
        (
            "import-iptables",
            samples(&[
                "stage1.rules",
                "stage3.rules",
                "stage3-six.rules",
                "redirect.rules",
                "part.rules",
            ]),
        ),
        (
            "import-xray",
            samples(&["stage4.json", "unknown-server.json"]),
        ),
        ("names", numbered("made", names.map(Into::into))),
        ("packets", packets()),
        ("outbound-urls", numbered("made", urls.map(Into::into))),
        ("prefixes", numbered("made", prefixes)),
        ("shadowsocks", numbered("made", shadowsocks)),
        ("socks", numbered("made", socks)),
        ("trojan", numbered("made", trojan)),
    ];
    let others = others.into_iter().chain(sniffers()).chain(dns());
    all.extend(others.map(|(name, seeds)| (name.to_owned(), seeds)));
    all
}

#[test]
fn every_target_has_seeds_that_are_made() {
    let mut with_seeds: Vec<String> = all().into_iter().map(|(name, _)| name).collect();
    let mut targets: Vec<String> = Target::all().iter().map(Target::name).collect();
    with_seeds.sort();
    targets.sort();
    assert_eq!(with_seeds, targets);
    let domains: Vec<Domain> = some_entries()
        .into_iter()
        .flat_map(|entries| entries.domains)
        .collect();
    assert!(domains.len() > 5);
}

#[test]
#[ignore = "writes into the source tree; run it by hand for a new target"]
fn write_the_seeds() {
    for (target, seeds) in all() {
        let folder = Path::new(CORPUS).join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds {
            let path = folder.join(name);
            if !path.exists() {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}
