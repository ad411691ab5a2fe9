//! Answers questions with the published crate `composefs`, one after another, over standard input and output.
//!
//! A question is a line `COMMAND HASH VERSION LENGTH` and LENGTH bytes; an answer is a line `VERDICT LENGTH` and LENGTH
//! bytes.  VERDICT is `ok`, `error` (the crate refuses, the bytes say why) or `panic`.
//!
//! - `digest`: of the image of a dumpfile, in hexadecimal
//! - `image`: the image of a dumpfile
//! - `check`: nothing, if the validating reader takes the image
//! - `tree`: the dumpfile of an image
//! - `objects`: the digests that an image names, one a line, sorted
//! - `splitstream`: what is in a splitstream: lines `type`, `size`, `object`, `name`, and `inline` or `external` in order
//! - `label`: the dumpfile of a tree with labels; the bytes are a line that names a directory with `etc/selinux`, and the
//!   dumpfile of the tree; the answer starts with a line: how many nanoseconds labelling took, the policy included
//! - `metadata`: of a `meta.json`, whether it may be written, and the image formats, the default first

use std::fs::{self, File};
use std::io::{self, BufRead, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use composefs::dumpfile::{
    dumpfile_to_filesystem, dumpfile_to_validated_filesystem, write_dumpfile,
};
use composefs::erofs::format::FormatVersion;
use composefs::erofs::reader::{Image, collect_objects, erofs_to_filesystem};
use composefs::erofs::writer::mkfs_erofs_versioned;
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue, compute_verity};
use composefs::repository::{FeatureCheck, RepoMetadata};
use composefs::splitstream::{SplitStreamData, SplitStreamReader};
use composefs_boot::selabel::selabel_from_dir;

struct Question {
    command: String,
    hash: String,
    version: FormatVersion,
    payload: Vec<u8>,
}

fn read_question(input: &mut impl BufRead) -> Result<Option<Question>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let [command, hash, version, length] = words[..] else {
        bail!("not a question: {line:?}");
    };
    let mut payload = vec![0; length.parse().context("the length of a question")?];
    input.read_exact(&mut payload)?;
    let version = match version {
        "0" => FormatVersion::V0,
        "1" => FormatVersion::V1,
        "2" => FormatVersion::V2,
        other => bail!("no version {other:?}"),
    };
    Ok(Some(Question {
        command: command.into(),
        hash: hash.into(),
        version,
        payload,
    }))
}

fn image<H: FsVerityHashValue>(question: &Question) -> Result<Box<[u8]>> {
    let tree = dumpfile_to_validated_filesystem::<H>(std::str::from_utf8(&question.payload)?)?;
    Ok(mkfs_erofs_versioned(&tree, question.version))
}

fn check<H: FsVerityHashValue>(data: &[u8]) -> Result<()> {
    Image::open(data)?
        .restrict_to_composefs()?
        .fsck_metadata()?;
    collect_objects::<H>(data)?;
    erofs_to_filesystem::<H>(data)?;
    Ok(())
}

fn tree<H: FsVerityHashValue>(data: &[u8]) -> Result<Vec<u8>> {
    let mut dumpfile = Vec::new();
    write_dumpfile(&mut dumpfile, &erofs_to_filesystem::<H>(data)?)?;
    Ok(dumpfile)
}

fn objects<H: FsVerityHashValue>(data: &[u8]) -> Result<Vec<u8>> {
    let mut lines: Vec<String> = collect_objects::<H>(data)?
        .iter()
        .map(|id| id.to_hex() + "\n")
        .collect();
    lines.sort();
    Ok(lines.concat().into())
}

/// A file that nobody else sees: the reader of splitstreams wants one.
fn unnamed_file(data: &[u8]) -> Result<File> {
    let path = std::env::temp_dir().join(format!("composefs-harness-{}", std::process::id()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(data)?;
    file.rewind()?;
    Ok(file)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn splitstream<H: FsVerityHashValue>(data: &[u8]) -> Result<Vec<u8>> {
    let mut reader = SplitStreamReader::<H>::new(unnamed_file(data)?, None)?;
    let mut lines = vec![
        format!("type {}", reader.content_type),
        format!("size {}", reader.total_size),
    ];
    reader.get_object_refs(|id| lines.push(format!("object {}", id.to_hex())))?;
    let named = reader.iter_named_refs();
    let mut names: Vec<String> = named
        .map(|(name, id)| format!("name {} {}", id.to_hex(), hex(name.as_bytes())))
        .collect();
    names.sort();
    lines.append(&mut names);
    reader.for_each_chunk(|chunk| {
        lines.push(match chunk {
            SplitStreamData::Inline(bytes) => format!("inline {}", hex(&bytes)),
            SplitStreamData::External(id) => format!("external {}", id.to_hex()),
        });
        Ok(())
    })?;
    Ok(lines.join("\n").into())
}

fn label<H: FsVerityHashValue>(data: &[u8]) -> Result<Vec<u8>> {
    let (root, dumpfile) = std::str::from_utf8(data)?
        .split_once('\n')
        .context("no line with a directory")?;
    let mut tree = dumpfile_to_filesystem::<H>(dumpfile)?;
    let root = File::open(root)?;
    let start = Instant::now();
    selabel_from_dir(&mut tree, root)?;
    let mut answer = format!("{}\n", start.elapsed().as_nanos()).into_bytes();
    write_dumpfile(&mut answer, &tree)?;
    Ok(answer)
}

fn metadata<H: FsVerityHashValue>(data: &[u8]) -> Result<Vec<u8>> {
    let found = RepoMetadata::from_json(data)?;
    let access = match found.check_compatible::<H>()? {
        FeatureCheck::ReadWrite => "write",
        FeatureCheck::ReadOnly(_) => "read",
    };
    let formats: Vec<String> = found
        .format_config()
        .versions()
        .map(|version| format!("{version:?}"))
        .collect();
    Ok(format!("{access} {}", formats.join(" ")).into())
}

fn answer<H: FsVerityHashValue>(question: &Question) -> Result<Vec<u8>> {
    match question.command.as_str() {
        "digest" => Ok(compute_verity::<H>(&image::<H>(question)?).to_hex().into()),
        "image" => Ok(image::<H>(question)?.into()),
        "check" => check::<H>(&question.payload).map(|()| Vec::new()),
        "tree" => tree::<H>(&question.payload),
        "objects" => objects::<H>(&question.payload),
        "splitstream" => splitstream::<H>(&question.payload),
        "label" => label::<H>(&question.payload),
        "metadata" => metadata::<H>(&question.payload),
        other => bail!("no command {other:?}"),
    }
}

fn main() -> Result<()> {
    std::panic::set_hook(Box::new(|_| {})); // a panic is an answer
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Some(question) = read_question(&mut input)? {
        let answered = catch_unwind(AssertUnwindSafe(|| match question.hash.as_str() {
            "sha256" => answer::<Sha256HashValue>(&question),
            "sha512" => answer::<Sha512HashValue>(&question),
            other => bail!("no hash {other:?}"),
        }));
        let (verdict, bytes) = match answered {
            Ok(Ok(bytes)) => ("ok", bytes),
            Ok(Err(error)) => ("error", format!("{error:#}").into_bytes()),
            Err(_) => ("panic", Vec::new()),
        };
        writeln!(output, "{verdict} {}", bytes.len())?;
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}
