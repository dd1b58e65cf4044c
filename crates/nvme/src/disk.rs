//! Files of one drive. All calls block; page reads and writes go through [`crate::io`] instead.

use crate::buffer::Buffer;
use crate::faults::{Faults, Kind, Verdict};
use crate::format::BLOCK;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The directory of one drive.
pub(crate) struct Disk {
    pub(crate) dir: PathBuf,
    pub(crate) faults: Faults,
    /// Some file of the drive could not be opened with `O_DIRECT`.
    buffered: AtomicBool,
}

/// One open segment file.
pub(crate) struct DiskFile {
    pub(crate) file: File,
    pub(crate) faults: Faults,
}

/// The name of the segment with this sequence number.
pub(crate) fn segment_file(sequence: u64) -> String {
    format!("memkv-{sequence:016x}.segment")
}

/// The sequence number in a segment's file name.
pub(crate) fn segment_of_file(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("memkv-")?.strip_suffix(".segment")?;
    let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|sequence| plain && *sequence != 0)
}

impl Disk {
    pub(crate) fn new(dir: &Path, faults: Faults) -> Self {
        Self { dir: dir.to_owned(), faults, buffered: AtomicBool::new(false) }
    }

    /// The same directory, for somebody else.
    pub(crate) fn again(&self) -> Self {
        Self::new(&self.dir, self.faults.clone())
    }

    /// Whether files bypass the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        !self.buffered.load(Ordering::Relaxed)
    }

    fn open(&self, options: &mut OpenOptions, name: &str) -> io::Result<DiskFile> {
        let path = self.dir.join(name);
        let direct = i32::try_from(OFlags::DIRECT.bits()).expect("flags of open are small");
        let file = match options.custom_flags(direct).open(&path) {
            Err(refused) if refused.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.buffered.store(true, Ordering::Relaxed);
                options.custom_flags(0).open(&path)?
            }
            opened => opened?,
        };
        Ok(DiskFile { file, faults: self.faults.clone() })
    }

    /// Makes a new file of a given size. Nothing is left behind if that fails.
    pub(crate) fn create(&self, name: &str, bytes: u64) -> io::Result<DiskFile> {
        self.faults.check(Kind::Create, bytes)?;
        let made = self.open(OpenOptions::new().read(true).write(true).create_new(true), name);
        let sized = made.and_then(|file| file.allocate(bytes).map(|()| file));
        if let Err(reason) = &sized
            && reason.kind() != io::ErrorKind::AlreadyExists
        {
            fs::remove_file(self.dir.join(name)).ok();
        }
        sized
    }

    /// Opens a file that is there.
    pub(crate) fn open_existing(&self, name: &str) -> io::Result<DiskFile> {
        self.open(OpenOptions::new().read(true).write(true), name)
    }

    /// Removes a file, and makes the removal last.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        self.faults.check(Kind::Remove, 0)?;
        fs::remove_file(self.dir.join(name))?;
        self.sync_dir()
    }

    /// Makes new and removed names last.
    pub(crate) fn sync_dir(&self) -> io::Result<()> {
        self.faults.check(Kind::Sync, 0)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Whole content of a small file. `None` if it is not there, or is larger than `bytes_max`.
    pub(crate) fn load(&self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.dir.join(name)) {
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut content = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut content)?;
        Ok((content.len() as u64 <= bytes_max).then_some(content))
    }

    /// Puts a new content in place of a small file's, whole or not at all, and makes it last.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.faults.check(Kind::Write, content.len() as u64)?;
        let new = self.dir.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(name))?;
        self.sync_dir()
    }

    /// Whether the directory still has the file that names the drive.
    pub(crate) fn is_there(&self) -> io::Result<()> {
        fs::metadata(self.dir.join(crate::members::DRIVE_FILE)).map(|_| ())
    }

    /// Takes the directory for this process, until the file is closed. `None` if another one has it.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(self.dir.join("memkv-lock"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(reason) => Err(reason.into()),
        }
    }

    /// Names of all files.
    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // A name that is not text is not ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

impl DiskFile {
    /// Takes room for the file, as far as the file system can promise it.
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(bytes),
            done => Ok(done?),
        }
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Cuts the file, or makes it longer with zeros.
    pub(crate) fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.faults.check(Kind::Write, 0)?;
        self.file.set_len(bytes)
    }

    /// Reads whole blocks; fewer than asked if the file ends before.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.faults.check(Kind::Read, buffer.len() as u64)?;
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                // After an odd end of the file the next read would start between two blocks.
                Ok(n) if !n.is_multiple_of(BLOCK) => return Ok(done + n),
                Ok(n) => done += n,
                Err(reason) if reason.kind() == io::ErrorKind::Interrupted => {}
                Err(reason) => return Err(reason),
            }
        }
        Ok(done)
    }

    /// Writes whole blocks.
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64) -> io::Result<()> {
        match self.faults.meet(Kind::Write, buffer.len() as u64) {
            Verdict::Go | Verdict::Part(_) => {
                self.faults.writes(&self.file, offset, buffer.len())?;
                self.file.write_all_at(buffer, offset)
            }
            Verdict::Fail(reason) => Err(reason),
            Verdict::Crash(bytes) => {
                self.file.write_all_at(&Buffer::copy_of(buffer)[..whole(bytes, buffer.len())], offset)?;
                Err(io::Error::from(Errno::IO))
            }
        }
    }

    /// Waits until the drive has the file's bytes and all that is needed to find them.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.faults.check(Kind::Sync, 0)?;
        self.file.sync_data()?;
        self.faults.synced(&self.file)
    }
}

/// What a torn write of `bytes` bytes leaves: whole sectors, as drives write them.
pub(crate) fn whole(bytes: usize, len: usize) -> usize {
    const SECTOR: usize = 512;
    bytes.min(len) / SECTOR * SECTOR
}
