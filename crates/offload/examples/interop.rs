//! An engine without a model that shares pages with SGLang: what `sglang-plugin/tests/test_rust_engine.py` drives.
//!
//! Reads one JSON object from standard input and writes one to standard output. The client is configured by
//! `MEMKV_*`. `content` is a file with the prompt's pages one after the other, each in the order layer, half, token,
//! head, number, whatever the layout: that is where a page's meaning is, and [`PageFormat::row`] says where it goes.
//!
//! - `write`: "computes" the prompt, that is, reads the pages from `content`, and waits until the store has them;
//! - `read`: takes the prompt through store and host memory to the device, and writes what came to `content`.

#![allow(clippy::print_stdout, reason = "the answer goes to standard output")]

use memkv_client::{Client, Config, Space};
use memkv_offload::{
    Attention, Dtype, EngineSpace, Half, Layout, Options, PageFormat, PageRegion, Rank, StopPolicy, Tiers,
    Warmup,
};
use memkv_radix::{Access, Namespace, RadixCache, Request, Shape, Tokens, WritePolicy};
use serde_json::{Value, json};
use std::error::Error;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// How long the store may take for everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the test says.
struct Task {
    space: EngineSpace,
    namespace: Namespace,
    tokens: Vec<u32>,
    content: String,
}

fn number(value: &Value, name: &str) -> Fallible<usize> {
    let number = value[name].as_u64().ok_or_else(|| format!("{name} is missing"))?;
    Ok(usize::try_from(number)?)
}

fn text<'a>(value: &'a Value, name: &str) -> Fallible<&'a str> {
    value[name].as_str().ok_or_else(|| format!("{name} is missing").into())
}

fn format(value: &Value) -> Fallible<PageFormat> {
    let attention = match text(value, "kind")? {
        "mha" => Attention::MultiHead {
            kv_heads: number(value, "kv_heads")?,
            head_dim: number(value, "head_dim")?,
        },
        _ => Attention::Latent {
            kv_lora_rank: number(value, "kv_lora_rank")?,
            qk_rope_head_dim: number(value, "qk_rope_head_dim")?,
        },
    };
    let dtype = match text(value, "dtype")? {
        "bfloat16" => Dtype::Bfloat16,
        "float16" => Dtype::Float16,
        "float8_e4m3fn" => Dtype::Fp8E4m3,
        other => return Err(format!("no dtype {other}").into()),
    };
    let layouts = [Layout::LayerFirst, Layout::PageFirst, Layout::PageFirstDirect, Layout::PageHead];
    let name = text(value, "layout")?;
    let layout = layouts.into_iter().find(|layout| layout.name() == name).ok_or("no such layout")?;
    let (layers, page_tokens) = (number(value, "layers")?, number(value, "page_tokens")?);
    Ok(PageFormat { layers, page_tokens, attention, dtype, layout })
}

fn task(value: &Value) -> Fallible<Task> {
    let mut space = EngineSpace::new(text(value, "model")?, format(value)?);
    space.kv_dtype = value["kv_dtype"].as_str().map(str::to_owned);
    space.tp = Rank { rank: 0, size: 1 };
    let tokens = value["tokens"].as_array().ok_or("tokens are missing")?;
    let token = |token: &Value| token.as_u64().and_then(|token| u32::try_from(token).ok());
    Ok(Task {
        space,
        namespace: Namespace::new(value["extra_key"].as_str(), value["cache_salt"].as_str())?,
        tokens: tokens.iter().map(token).collect::<Option<_>>().ok_or("tokens are numbers")?,
        content: text(value, "content")?.to_owned(),
    })
}

/// The rows of a page in the order layer, half, token, head.
fn rows(format: &PageFormat) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let heads = match format.attention {
        Attention::MultiHead { kv_heads, .. } => kv_heads,
        Attention::Latent { .. } => 1,
    };
    let places = (0..format.layers).flat_map(move |layer| {
        [Half::Keys, Half::Values].into_iter().flat_map(move |half| {
            (0..format.page_tokens)
                .flat_map(move |token| (0..heads).map(move |head| (layer, half, token, head)))
        })
    });
    places.filter_map(|(layer, half, token, head)| format.row(half, layer, token, head))
}

/// One engine: cache, tiers and its device.
struct Engine {
    cache: RadixCache,
    tiers: Tiers<Arc<PageRegion>, Space>,
    device: Arc<PageRegion>,
    format: PageFormat,
}

impl Engine {
    fn new(task: &Task, store: Space) -> Fallible<Self> {
        let format = task.space.format;
        let pages = u32::try_from(task.tokens.len().div_ceil(format.page_tokens) + 1)?;
        let shape = Shape::new(format.page_tokens, false).ok_or("a page has 1 to 256 tokens")?;
        let mut config = memkv_radix::Config::new(shape, pages).with_host(2 * pages, WritePolicy::Through);
        config.storage = true;
        config.prefetch_min_tokens = format.page_tokens;
        config.prefetch_max_tokens = usize::MAX;
        let cache = RadixCache::new(config)?;
        let device = Arc::new(PageRegion::new(pages as usize, format.page_bytes())?);
        let host = PageRegion::new(2 * pages as usize, format.page_bytes())?;
        let options = Options { stop: StopPolicy::WaitComplete, ..Options::default() };
        let tiers = Tiers::new(&cache, device.clone(), host, store, options)?;
        Ok(Self { cache, tiers, device, format })
    }

    /// A request with all that device, host and store have of its prompt.
    async fn warm(&mut self, task: &Task, tokens: &[u32]) -> Request {
        let access = Access::of(&task.namespace);
        let mut request = self.cache.start(access, Tokens::from(tokens), 0);
        let mut warmup = Warmup::default();
        while !self.tiers.warm(&mut self.cache, access, &mut request, &mut warmup) {
            self.tiers.changed().await;
            self.tiers.poll(&mut self.cache);
        }
        request
    }

    async fn write(&mut self, task: &Task) -> Fallible<usize> {
        let content = std::fs::read(&task.content)?;
        let mut request = self.warm(task, &task.tokens).await;
        let known = request.protected_pages();
        self.cache.reserve(&mut request, task.tokens.len())?;
        let pages = request.row().iter().zip(content.chunks_exact(self.format.page_bytes()));
        for (page, meaning) in pages.skip(known) {
            let mut bytes = self.device.write(page.index()).ok_or("the page is in use")?;
            let mut at = 0;
            for row in rows(&self.format) {
                let end = at + row.len();
                bytes[row].copy_from_slice(&meaning[at..end]);
                at = end;
            }
        }
        self.cache.finish(request, task.tokens.len())?;
        if !self.tiers.drain(&mut self.cache, PATIENCE) {
            return Err("the store does not take the pages".into());
        }
        Ok(known)
    }

    async fn read(&mut self, task: &Task) -> Fallible<usize> {
        // The last token is always computed; one more makes the whole prompt a prefix.
        let tokens = [&task.tokens[..], &[0]].concat();
        let request = self.warm(task, &tokens).await;
        let found = request.protected_pages();
        let mut content = Vec::new();
        for page in &request.row()[..found] {
            let bytes = self.device.read(page.index()).ok_or("the page is in use")?;
            rows(&self.format).for_each(|row| content.extend_from_slice(&bytes[row]));
        }
        std::fs::write(&task.content, content)?;
        self.cache.abort(request);
        Ok(found)
    }
}

async fn run(value: &Value) -> Fallible<Value> {
    let task = task(value)?;
    let client = Client::connect(Config::load()?).await?;
    let store = client.space(task.space.describe()?).await?;
    let (id, description) = (store.id().to_string(), store.description().clone());
    let description: serde_json::Map<String, Value> =
        description.fields().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let mut engine = Engine::new(&task, store)?;
    let pages = match text(value, "mode")? {
        "write" => engine.write(&task).await?,
        "read" => engine.read(&task).await?,
        other => return Err(format!("no mode {other}").into()),
    };
    engine.tiers.shut_down(&mut engine.cache, PATIENCE);
    let stats = engine.tiers.stats();
    Ok(json!({
        "space": id,
        "description": description,
        "found_pages": pages,
        "stored_pages": stats.stored_pages,
        "known_pages": stats.known_pages,
        "prefetched_pages": stats.prefetched_pages,
    }))
}

fn main() -> Fallible<()> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(run(&serde_json::from_str(&input)?))?;
    println!("{answer}");
    Ok(())
}
