use super::*;
use memkv_storage::EngineConfig;
use memkv_transport::tenant::TenantKey;

fn description(name: &str) -> SpaceDescription {
    SpaceDescription::named(name).unwrap()
}

fn engine() -> Arc<Engine> {
    Engine::new(EngineConfig::with_dram(4 << 20)).unwrap()
}

fn file(text: &str) -> Credentials {
    Credentials::parse(text).unwrap()
}

fn tenants(text: &str, engine: &Engine) -> Tenants {
    Tenants::new(None, Some("credentials".into()), Shares::default(), &file(text), engine)
}

fn named(tenants: &Tenants, name: &str) -> Arc<Tenant> {
    Arc::clone(&tenants.table.read().by_name[name])
}

#[test]
fn a_space_is_nowhere_for_everybody_else() {
    let engine = engine();
    let tenants = tenants("tenants: [{name: a}, {name: b}]", &engine);
    let (a, b) = (named(&tenants, "a"), named(&tenants, "b"));
    let id = tenants.open_space(&a, description("s"), &engine).unwrap();
    assert!(a.find(&engine, id).own().is_some());
    assert!(matches!(b.find(&engine, id), Found::No));
    assert_ne!(tenants.open_space(&b, description("s"), &engine).unwrap(), id, "another space of that name");
    let foreign = description("s").of_tenant("a").unwrap();
    assert!(matches!(tenants.open_space(&b, foreign, &engine), Err(Fault::Foreign)));
    let unknown = description("nobody has it").of_tenant("a").unwrap();
    assert!(matches!(tenants.open_space(&b, unknown, &engine), Err(Fault::Foreign)), "the same answer");
    assert_eq!(b.administers(&engine).len(), 1);
    assert_eq!(tenants.operator().administers(&engine).len(), 2);
}

#[test]
fn public_spaces_are_read_by_those_who_are_named() {
    let engine = engine();
    let text =
        "tenants: [{name: a}, {name: b}, {name: c}]\npublic: [{owner: a, spaces: ['base-*'], readers: [b]}]";
    let tenants = tenants(text, &engine);
    let (a, b, c) = (named(&tenants, "a"), named(&tenants, "b"), named(&tenants, "c"));
    let public = description("base-1").of_tenant("a").unwrap();
    let early = tenants.open_space(&b, public.clone(), &engine).unwrap();
    assert!(matches!(b.find(&engine, early), Found::No), "whoever reads does not make it");
    let id = tenants.open_space(&a, description("base-1"), &engine).unwrap();
    assert_eq!(early, id);
    assert!(matches!(b.find(&engine, id), Found::Readable(_)));
    assert!(matches!(c.find(&engine, id), Found::No));
    assert!(matches!(tenants.open_space(&c, public, &engine), Err(Fault::Foreign)));
    let private = tenants.open_space(&a, description("own"), &engine).unwrap();
    assert!(matches!(b.find(&engine, private), Found::No));
    tenants.adopt(&file("tenants: [{name: a}, {name: b}]"), &engine);
    assert!(matches!(b.find(&engine, id), Found::No), "public no more");
    assert!(a.find(&engine, id).own().is_some());
}

#[test]
fn a_tenant_opens_what_it_may_and_no_more_than_it_may() {
    let engine = engine();
    let tenants = tenants("tenants: [{name: a, spaces: ['x-*'], quotas: {spaces: 1}}]", &engine);
    let a = named(&tenants, "a");
    assert!(matches!(tenants.open_space(&a, description("y"), &engine), Err(Fault::Foreign)));
    let id = tenants.open_space(&a, description("x-1"), &engine).unwrap();
    assert_eq!(tenants.open_space(&a, description("x-1"), &engine).unwrap(), id, "again is fine");
    assert!(matches!(tenants.open_space(&a, description("x-2"), &engine), Err(Fault::TooManySpaces(1))));
}

#[test]
fn keys_come_and_go_with_the_file() {
    let engine = engine();
    let key = |byte| TenantKey::new(&AuthKey::from_bytes([byte; 32]), "a");
    let entry = |keys: &[&TenantKey]| {
        let keys = keys
            .iter()
            .map(|key| format!("{{id: '{}', verifier: '{}'}}", key.key_id(), key.verifier().to_hex()));
        file(&format!("tenants: [{{name: a, keys: [{}]}}]", keys.collect::<Vec<_>>().join(", ")))
    };
    let (old, new) = (key(1), key(2));
    let tenants = Tenants::new(None, Some("f".into()), Shares::default(), &entry(&[&old, &new]), &engine);
    let whose = |key: &TenantKey| tenants.secret("a", key.key_id()).1;
    assert!(whose(&old).is_some() && whose(&new).is_some(), "two are valid while one follows the other");
    assert!(whose(&key(3)).is_none() && tenants.secret("b", old.key_id()).1.is_none());
    assert!(tenants.secret("", "").1.is_none(), "there is no cluster key");
    let a = named(&tenants, "a");
    tenants.adopt(&entry(&[&new]), &engine);
    assert!(whose(&old).is_none() && whose(&new).is_some());
    let proven = |key: &TenantKey| tenant::Proven::Key(key.key_id().to_owned());
    assert!(!a.accepts(&proven(&old)) && a.accepts(&proven(&new)));
    tenants.adopt(&Credentials::default(), &engine);
    assert!(whose(&new).is_none() && !a.may(Rights::READ) && !a.accepts(&proven(&new)));
}
