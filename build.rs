//! Embeds the provider files and the example `routes.toml`, so that the program works without any file beside it.

use std::fs;
use std::io::Error;
use std::path::Path;

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=providers");
    println!("cargo::rerun-if-changed=routes.toml");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("providers"))? {
        let name = entry?.file_name().into_string().map_err(|_| Error::other("a provider file's name is not UTF-8"))?;
        if Path::new(&name).extension().is_some_and(|extension| extension == "toml") {
            names.push(name);
        }
    }
    names.sort();
    // The compiler, not this script, fills in the folder: a build directory may be moved or copied with its outputs.
    let literal = |path: &str| format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), {:?})", format!("/{path}"));
    let embedded = |name: &String| format!("({name:?}, include_str!({})),", literal(&format!("providers/{name}")));
    let providers: String = names.iter().map(embedded).collect();
    let code = format!(
        "/// File name and text of every provider file.\npub(super) const PROVIDERS: &[(&str, &str)] = &[{providers}];\n\
         /// The example `routes.toml`.\npub const ROUTES: &str = include_str!({});\n",
        literal("routes.toml")
    );
    #[expect(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by environment variable")]
    let folder = std::env::var_os("OUT_DIR").ok_or_else(|| Error::other("cargo did not set OUT_DIR"))?;
    fs::write(Path::new(&folder).join("builtin.rs"), code)
}
