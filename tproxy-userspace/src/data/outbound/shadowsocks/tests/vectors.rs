//! What the reference implementation makes (the crate `shadowsocks` 1.25.0): byte for byte the same, where it is not chance.

use super::*;
use crate::data::outbound::shadowsocks::encode::Beginning;
use crate::data::outbound::shadowsocks::packets::session_of;

/// One method's traffic with the target 192.0.2.1:443, in hexadecimal digits.
struct Vector {
    method: &'static str,
    password: &'static str,
    now: u64,
    /// "ping" and "more", each written alone.
    up: &'static str,
    /// The answer to that: "pong" and "and more".
    down: &'static str,
    /// "query", the first datagram of session 0x0123456789abcdef.
    to_server: &'static str,
    /// "answer" from the target: number 7 of the server's session 0xfedcba9876543210.
    to_client: &'static str,
}

const CLIENT: u64 = 0x0123_4567_89ab_cdef;

impl Vector {
    fn keys(&self) -> Arc<Keys> {
        let method = self.method.parse().expect("a method");
        Arc::new(Keys::new(method, self.password.as_bytes()).expect("a key"))
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("digits"))
        .collect()
}

#[test]
fn a_connection_begins_as_the_reference_begins_it() {
    for vector in &VECTORS {
        let keys = vector.keys();
        let up = bytes(vector.up);
        let beginning = Beginning {
            salt: &up[..keys.method().key_length()],
            now: vector.now,
            padding: 0,
        };
        let mut out = Vec::new();
        let (mut encoder, taken) =
            Encoder::start_at(&keys, &beginning, target().into(), b"ping", &mut out);
        assert_eq!(taken, 4);
        encoder.encode(b"more", &mut out);
        assert_eq!(out, up, "{}", vector.method);
    }
}

#[test]
fn the_answers_of_the_reference_are_read() {
    for vector in &VECTORS {
        let keys = vector.keys();
        let up = bytes(vector.up);
        let salt = &up[..keys.method().key_length()];
        let read = |bytes: &[u8], now| read_all(&keys, salt, bytes, now);
        let down = bytes(vector.down);
        assert_eq!(read(&down, vector.now), Ok(b"pongand more".to_vec()));
        for at in 0..8 * down.len() {
            let mut flipped = down.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(
                read(&flipped, vector.now).is_err(),
                "bit {at} of {}",
                vector.method
            );
        }
        for length in 1..down.len() {
            let cut = read(&down[..length], vector.now);
            // Between two chunks an end is an end.
            assert!(
                cut.is_err() || cut == Ok(b"pong".to_vec()),
                "{length} {cut:?}"
            );
        }
        if keys.method().is_2022() {
            assert_eq!(read(&down, vector.now + 31), Err(Fault::Clock(-31)));
            assert_eq!(read(&down, vector.now - 31), Err(Fault::Clock(31)));
            assert!(read(&down, vector.now + 30).is_ok());
            // Somebody sends our own words back.
            let own = [&up[..salt.len()], &up[up.len() - 64..]].concat();
            assert_eq!(read(&own, vector.now), Err(Fault::Key));
            let foreign = vec![7; salt.len()];
            let answer = read_all(&keys, &foreign, &down, vector.now);
            assert_eq!(answer, Err(Fault::Foreign));
        }
    }
}

#[test]
fn datagrams_are_those_of_the_reference() {
    for vector in &VECTORS {
        let keys = vector.keys();
        let (sealer, mut opener) = session_of(&keys, CLIENT);
        let (to_server, to_client) = (bytes(vector.to_server), bytes(vector.to_client));
        let mut out = b"kept".to_vec();
        sealer.seal_at(target(), b"query", &mut out, vector.now);
        assert_eq!(out.len() - 4, to_server.len());
        if keys.method().takes_identities() {
            assert_eq!(&out[4..], to_server, "{}", vector.method);
        }

        let mut out = b"kept".to_vec();
        let (peer, payload) = opener
            .open_at(&to_client, &mut out, vector.now)
            .expect("an answer");
        assert_eq!((peer, &out[payload]), (Some(target()), &b"answer"[..]));
        assert!(out.starts_with(b"kept"));
        for at in 0..8 * to_client.len() {
            let mut flipped = to_client.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let fault = opener.open_at(&flipped, &mut out, vector.now);
            assert!(fault.is_err(), "bit {at} of {}", vector.method);
        }
        // What is for the server only is no answer, but it is encrypted in the same way.
        let own = opener
            .open_at(&to_server, &mut out, vector.now)
            .map(|(peer, _)| peer);
        let expected = match keys.method() {
            method if !method.is_2022() => Ok(Some(target())),
            Method::Blake3Chacha20Poly1305 => Err(PacketFault::Type(0)),
            _ if vector.password.contains(':') => Err(PacketFault::Forged),
            _ => Err(PacketFault::Type(0)),
        };
        assert_eq!(own, expected, "{}", vector.method);
        if keys.method().is_2022() {
            let mut open = |now| {
                opener
                    .open_at(&to_client, &mut out, now)
                    .map(|(peer, _)| peer)
            };
            assert_eq!(open(vector.now), Err(PacketFault::Replayed));
            let (_, mut opener) = session_of(&keys, CLIENT);
            let mut open = |now| {
                opener
                    .open_at(&to_client, &mut out, now)
                    .map(|(peer, _)| peer)
            };
            assert_eq!(open(vector.now + 31), Err(PacketFault::Clock(-31)));
            assert_eq!(open(vector.now), Ok(Some(target())));
            let (_, mut foreign) = session_of(&keys, CLIENT + 1);
            let fault = foreign.open_at(&to_client, &mut out, vector.now);
            assert_eq!(fault, Err(PacketFault::Foreign));
        }
    }
}

const VECTORS: [Vector; 8] = [
    Vector {
        method: "aes-128-gcm",
        password: "test vector",
        now: 1795418951,
        up: "6539d3f0c6b7c7232bd1e5ab39810cdb867ecc05ed1f4cda2e2c3d575c2128d99bdef7b6389277a525f7287fd060ad81475574ff2f373e5fa3e59b197f8c9ce4181305878eb33f4da0da2966956dc7b116e471beaffcc1734ea719ff93e8a5481aa09f",
        down: "f8190d4c7540477055d8cf336225cf52b72efb07712fa9a44ab0af6e8bb8ce291dc26e7570742c7450f484bcbea62d1d8b9e5732ce6bd18b657a1a61c410de0a0cd660e93549e03c3f477fb58ed51d23fc4092818e290e9251803e965264ade9",
        to_server: "1f3fcb3238fd2a71a0acdc73d6f5d7f966f23e0732857127258dcaff5568b41878b1676aec84094b83da9f72",
        to_client: "f92c34407473e2370671bc263402f97bd0248ec774a7a2582b59f4e74e02ffa1118b1f735a562e7d1067df6713",
    },
    Vector {
        method: "aes-256-gcm",
        password: "test vector",
        now: 1795418951,
        up: "d8a10862ffbaf4de7aa7e4a43cd2ff8df6f97d99331b6ea52b5fd619cf955d309455c6d83dd5ecf7a4fb562cf19723714e5fb3c3b79d3ad2a75d451c90e5179979c7a293d94bccd44abf68f225a63a7f0214239518fd7d2c4b24ae7bd9c50b38e569617ef038b7ad80a4af351b8e3d8a1478da",
        down: "6cb489d247cff609a95d96ee40840b2a9f6de245f7b14abd810a0cce8cd6020402c54687447bf6f1f7a7643422c8774b8c9b193ab615b273d76f0a740fb64d2be30f926de9362f75c4da3d2c1983c13a42e732cb585b2479a27e07625b40cff0a926aa814b1019b0e4ef629a20e87c9f",
        to_server: "b639173eb67bd5ad55afa04939ae171d6e0773993941eb7665f2ea57095a31f6c859aeb0e7c73ee52b96519a9dda1eccc270f23fda8c15024ba775ff",
        to_client: "49e9541c03bbfe2a7b06586a8638742c831f09210d97e56f42c54f7eb9e3be9bf2382ad413e79e94923bb3209df20d50865503f03a234cb4d54ff0f55f",
    },
    Vector {
        method: "chacha20-ietf-poly1305",
        password: "test vector",
        now: 1795418951,
        up: "51c3286802c34564a576eea01b86e2a7492c4114881b61ca2e5ac9dc730252b5c331293a3ad17f12e3acc871f57b4ff38147a0d3cd9dea8d8cda20bc3a6f56e4d2b600cc02feee678571905fcace57ec4cd8261b8c20859fa602e5dbad26321029d1c06f8862a6e7f0c0c7bae8c6d61aa166de",
        down: "8bea37f5f0cbb593b49f2cb25df1b944f7e25136210b4b32170634d8a8eace492c79972a45b175ea97b6ff6c26e402d0970ba1ef3e25f5138278a8cadf0c762b120b929b37b74a8a77d4c830084ad1b9f8638f69eda16caedae8b0c837559dcae9e2cc95c5b54762813b044d133e52c0",
        to_server: "5bab9e41d2ab6d4286303bb9664292a3521ada645e74536f0d0d7e9e9a605d8c1742d97d35c2419d7a81d78c1fa1588b4c4d02943ee74e8f9d39f79f",
        to_client: "013296483ab0007f9b5c4aa777ba44c4cd18bda32bf386268b2611cd5856cca50383211610f11d3a834e81c1eae543726ddce1e2fbc83706e9a335a373",
    },
    Vector {
        method: "2022-blake3-aes-128-gcm",
        password: "AAECAwQFBgcICQoLDA0ODw==",
        now: 1795418951,
        up: "1dd9b61e0df78b1c13f78590925f8fdddd86172e0c5a954faabeb0b3b08bc12ea4d9b0076a0d57be8c7f1f6971111edba7e26888628956c4a6affb0d54e523a5b3752fba843bbde8bed7999f8a8e49625624979fdbbc9654228c89aa4cb75501248cfa1d3d942dba8d7a25a88249",
        down: "3d937677317c6bc215188438b7d78d16eb223d5bea3718e16e6ea5a792c57bbf680953fdccb373d67a4002c04728f5d63f7fefa2db489507828dc1f2be0889a4bf3616789e98a211d398355c117c9d1d36852cd65906009dec1cd0ad30a77b63669112cb48261cbc88b687d4eadbda6cbd08660fda19045b2f",
        to_server: "e2c812120e7a4400e70cc21693557d5edc66f69c97f1d6bf71c7f0e030c1574d2c5266e2354ce3c68218c01a051b48cd02581aadb9e6c5",
        to_client: "396dade8f8af8195b75f4eb746b444b96c77455af319aad7acaa5e812d4c47151c086a7d0cbbc242530b52f2eb8f52f8ddcdb1cbbbadb037426bdb4303f56654",
    },
    Vector {
        method: "2022-blake3-aes-256-gcm",
        password: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        now: 1795418951,
        up: "a3e1d732d9eb5b239734538cf40e2a4501ae1ac25b59533b4eb349033571770adf2890bfa3b5cf2a061b08684e3400ce404b89be5be2e1e78e236fd301f110c6fa3ef0ec0b5fe65e7f8cc363af931396c32a63cb1de3f907c49bcbe6c08f94b92f83b2c8d838fdf54ebd164d027566ac57818360691dda5e43a49282ff7f",
        down: "890efd5eb4ff59e20a72b859f9e6b23b369c2615dffe3bf7f76ae44a231680fd5604762a02610facdcb327c3c36a106655586149ff24bb37dbe03245701aa8441dc6052b653ad49860db3a34048451176736956cc36f8564903facfdb6b554f846aefae477a5f606a2e3194a052818327011fefafb54625f5184ff0270a2c22489cc6c374230fdd5dc5547ca5be0981c1e366a2ac5c0d66cd9",
        to_server: "237a4583035aff9724e9ec3d70a908f1c08837275248b977fea189dab04c65dca945ab5a8071cfdfd7e4f53d79ef94793ea119b2cde45b",
        to_client: "924f1099a09f5e70023e2e48b7669a744bf326db8acf83ec54d20bd24deacb737db0cf948d8eb381bdece381fb42fae65d550c0f288a0d27fcb475abed1c24a4",
    },
    Vector {
        method: "2022-blake3-chacha20-poly1305",
        password: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        now: 1795418951,
        up: "a31b42a314ba69cb85eb5aa924c910bfbf840d079b800d0b6bb53cff084e3081066170163566b46cef87e9516650a25ab1057d9eadddd74433034a5e3c73db0018ea6e392b36ca9703c64bb6377d491d1e129984f9581124c50e97067e141aef1409e59550288bbf154576f4860cf728164c8a790ac0832c219d81ed61cf",
        down: "def7869ef9b1799f054b21048565eb5eaa6ce65020eecf21ab2811f395dde74ed5552ef9ae80cb69503fed347a5ffdeac0dfd8b3289b62db0b4cf722f607cd30af008780a714a78ed2df065d079937ca85a06f1dfb47127cefeed263afc9da2e102d2bef48234e785494a20fc84318650516cfc0a3980018fc070348a2eb235a97ff49f64c750c36686ead1935d3570de4babf372b56988119",
        to_server: "2f161c45cf5c426de1adde87bace7b676fb9ba417148b0972fabf4e54b638530c1509fcdd2996a624a80f2ea4325596be69910939736d1fb215f60eb9f8c88234a03ca80fd3192319ae2a38d263976",
        to_client: "09f27647ecc62c351bde1f90ce4a000344867b137fcb777a834494e4bfd2ca14657e853290725cf63dc7cb7afcc0e0f297b98d3ff6096e0ec0e9666747e1893ed74dbed27cdaa96fbf68fbeaa99d98ac95ecdfd0af32ac57",
    },
    Vector {
        method: "2022-blake3-aes-128-gcm",
        password: "AAECAwQFBgcICQoLDA0ODw==:EBESExQVFhcYGRobHB0eHw==",
        now: 1795418951,
        up: "25ea8f38ac0239c99f4a9b9cb0a5267fce4c3dcff84736e283706d18d0d640ac0877a94d778718082b45efaf228e797d6b188648e86614e113b1ba0702fafe29c8a2ce3ebd5cfc6444e8fcf777ddc25b2aaddde4b6edc10e20896a3052d6ba101a238d2ea593bc94970896117f89cb75f7c3310c7de81b2507c3d754b11f",
        down: "e835633a4ca5bc3853838e5f24513928aa8a41eecf826b0a726ae17dd728d5663376f3202ced5b35f29ce93f9abf1b1d42e42938678913c31def657b4e69d1519aebd47876bce54f6da17bb7e098bc09326c5029d314635bb9e9beb2fc0eb08f3279d32b2cf87134e7355af7ed7102991afceefca59ca5c4a6",
        to_server: "e2c812120e7a4400e70cc21693557d5eb3bc3971ac72ae50d7a5031c16a1da029603078966e3417edec9dc2bb710ae5745961004e1224a6be4e65dec8c85cc8c854dd2fef3c032",
        to_client: "4afddfba522a60c529dbdd8ac652911b46685a6c57c3c0f399950c43171469143c38008b4981e6f0997821388fe9a441954208959a484deaf6b4856595b40f6b",
    },
    Vector {
        method: "2022-blake3-aes-256-gcm",
        password: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
        now: 1795418951,
        up: "21d15f1e0ffab033748a6d4f2c684e45f9800fc8902fb7e9a7525f72d679d51b57dc59345ec248f69025018a3c499138e5af39fbc56ee936092221ef013957ac283fcc61cc70c25f91de0aa7f4138c23ac9591e8582e32eabdb28647c420312c0773c4a4d1f9c4b0c560ed34afd6bcbd49dca291beb4093424f71fbbbc67c354824e1a2bafd81afad1359325b3bd",
        down: "84cc45948187ba57e6e55fa6dc94f632a1008db53a5ad4cb9244cfe4b593f8491fa12813a5e49e8ba5d9000ea96fc9853e5ec0f59994c2b500a36b515cf16fcce26f79714a7d9010e00c1de1150da85b1c08f3f8c38e18b2f72fc66cafa9e37b3da1008579b36747e07f6853dfdc1416c5d37adf346537ed1f2a74a9df1b2718aa81787fd801a69a4f258b805e3691a09ae85c619c48f6f996",
        to_server: "237a4583035aff9724e9ec3d70a908f11dfa646c70263bd35a6734b66cf9d8208b794f84e960a912a79435aeaa679aca843c61bac4fcb8d590b6c010de2c17dda90803f79fd90f",
        to_client: "7097c1cf2bff114ca2eba5b8dfea57d902f257c0d7a073fcb0eada43f04057dcc00acc12c0bb6d0480d75756e90335a50423b5427416279ce74bef5813e235d1",
    },
];
