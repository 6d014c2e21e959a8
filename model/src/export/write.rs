//! Reading, converting and writing, tensor by tensor.

use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use serde_json::{Map, Value, json};

use super::item::Item;
use super::options::ExportContainer;
use super::plan::ExportPlan;
use crate::checkpoint::writer::{Job, OutputDir, RecordFile, ShardFile, StoredTensor, check_space, check_target};
use crate::checkpoint::{INDEX, RECORD, SINGLE};
use crate::error::{Error, Result};
use crate::plan::Progress;

/// A file of weights that is being written.
enum WeightFile {
    Safetensors(ShardFile),
    Burnpack(RecordFile),
}

impl WeightFile {
    fn push(&mut self, tensor: StoredTensor, written: &mut dyn FnMut(&StoredTensor, usize, usize)) -> Result<()> {
        match self {
            Self::Safetensors(file) => file.push(tensor, written),
            Self::Burnpack(file) => file.push(&tensor, written),
        }
    }

    fn finish(self, written: &mut dyn FnMut(&StoredTensor, usize, usize)) -> Result<()> {
        match self {
            Self::Safetensors(file) => file.finish(written),
            Self::Burnpack(file) => file.finish(),
        }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Files that hold the weights.
    pub shards: usize,
    /// Of them, those that a run before had finished.
    pub resumed: usize,
    /// Bytes of all tensors.
    pub data_bytes: u64,
}

impl ExportPlan<'_> {
    /// Writes the directory, which must not exist or be empty. Everything is written to `DIR.partial` first, which becomes the
    /// directory in one step when it is complete and on the disk. When a run is cut off, the same call goes on after the last complete
    /// file of weights; `DIR.partial` of any other origin is refused. After an error of the source, which the same call would meet again,
    /// nothing that this call has written is left. `progress` is told after every tensor.
    ///
    /// # Errors
    /// [`Error::Source`] when there is something at `dir`, or the partial directory is other work's; [`Error::Space`] when the disk has
    /// too little room; [`Error::Tensor`] when a tensor cannot be converted (NaN, too large for the format); [`Error::Io`].
    pub fn write(&self, dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Exported> {
        check_target(dir)?;
        let source = self.pretrained.directory();
        let job = Job { about: format!("from {}", source.display()), fingerprint: self.fingerprint().to_owned() };
        if !OutputDir::is_begun(dir) {
            // Where there is no room, nothing is left behind.
            check_space(dir, self.bytes())?;
        }
        let output = OutputDir::open(dir, &job)?;
        let names: Vec<String> = (1..).take(self.shards.len()).map(|at| self.shard_name(at)).collect();
        let missing: Vec<(&String, &Range<usize>)> =
            names.iter().zip(&self.shards).filter(|(name, _)| !output.has(name)).collect();
        match self.write_files(&output, &names, &missing, progress) {
            Ok(data_bytes) => {
                output.commit()?;
                let resumed = self.shards.len().saturating_sub(missing.len());
                Ok(Exported { shards: self.shards.len(), resumed, data_bytes })
            }
            // With room, or after a repair, the same work goes on.
            Err(error @ (Error::Io { .. } | Error::Space { .. })) => Err(error),
            Err(error) => {
                output.discard(missing.iter().map(|(name, _)| name.as_str()));
                Err(error)
            }
        }
    }

    /// Writes the files of weights that are missing and everything beside them. Returns the bytes of all tensors.
    fn write_files(
        &self,
        output: &OutputDir,
        names: &[String],
        missing: &[(&String, &Range<usize>)],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64> {
        for (name, _) in missing {
            output.remove_part(name)?;
        }
        let items = |shard: &Range<usize>| self.items.get(shard.clone()).unwrap_or_default();
        let needed = missing.iter().flat_map(|(_, shard)| items(shard)).map(Item::bytes).sum::<u64>();
        check_space(output.target(), needed.saturating_add(self.bytes().saturating_sub(self.data_bytes())))?;

        let mut done = Progress { done: 0, total: self.source_bytes() };
        let work: usize = missing.iter().flat_map(|(_, shard)| items(shard)).map(|item| item.source_bytes).sum();
        done.done = done.total.saturating_sub(work);
        progress(done);
        for (name, shard) in missing {
            let part = output.part(name);
            let file = match self.container {
                ExportContainer::Safetensors => WeightFile::Safetensors(ShardFile::create(&part, self.slots(shard))?),
                ExportContainer::Burnpack => WeightFile::Burnpack(RecordFile::create(&part, self.slots(shard))?),
            };
            self.write_shard(file, items(shard), &mut |item| {
                done.done = done.done.saturating_add(item.source_bytes);
                progress(done);
            })?;
            output.complete(name)?;
        }
        // Not what was planned: how long some tensors are is known when they are made.
        let mut data_bytes = 0u64;
        for name in names {
            data_bytes = data_bytes.saturating_add(output.tensor_bytes(name)?);
        }
        if let [_, _, ..] = self.shards.as_slice() {
            output.write(INDEX, &self.index(names, data_bytes))?;
        }
        for (name, bytes) in &self.files {
            output.write(name, bytes)?;
        }
        Ok(data_bytes)
    }

    /// One thread converts, this one writes. The channel holds nothing, so that there are two tensors at most.
    fn write_shard(&self, mut file: WeightFile, items: &[Item], done: &mut dyn FnMut(&Item)) -> Result<()> {
        let weights = self.pretrained.weights();
        let checkpoint = weights.checkpoint();
        let mut release = |tensor: &StoredTensor, start: usize, length: usize| {
            if let Some(source) = &tensor.source {
                checkpoint.release_part(source, start, length);
            }
        };
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(0);
            scope.spawn(move || {
                for item in items {
                    let made = item.make(weights);
                    let failed = made.is_err();
                    // The receiver is gone after an error.
                    if sender.send((item, made)).is_err() || failed {
                        return;
                    }
                }
            });
            for (item, made) in receiver {
                for tensor in made? {
                    file.push(tensor, &mut release)?;
                }
                done(item);
            }
            Ok::<(), Error>(())
        })?;
        file.finish(&mut release)
    }

    fn shard_name(&self, number: usize) -> String {
        match self.shards.len() {
            _ if self.container == ExportContainer::Burnpack => RECORD.into(),
            1 => SINGLE.into(),
            count => format!("model-{number:05}-of-{count:05}.safetensors"),
        }
    }

    fn index(&self, names: &[String], data_bytes: u64) -> Vec<u8> {
        let mut map = Map::new();
        for (name, shard) in names.iter().zip(&self.shards) {
            map.extend(self.slots(shard).map(|slot| (slot.name.clone(), Value::from(name.as_str()))));
        }
        // Sorted, as transformers has it.
        map.sort_keys();
        let index = json!({ "metadata": { "total_size": data_bytes }, "weight_map": map });
        format!("{index:#}\n").into_bytes()
    }
}
