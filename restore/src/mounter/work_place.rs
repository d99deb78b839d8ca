//! The work place of this restore: a new one, or that of one which was killed; and the pipes that are kept open there.

use std::os::fd::AsFd;

use anyhow::Context;
use autofs_cr_common::model::{MountType, Options, TextPath};
use autofs_cr_common::unfinished::PIPE_SOURCE;
use rustix::mount::MountAttrFlags;

use super::Mounter;
use super::park::{self, Notes, Park};
use super::superblock::{self, Recipe};
use crate::parked::Parking;

impl<'a> Mounter<'a> {
    /// The work place, made when it is needed first.
    pub(super) fn open_park(&mut self) -> anyhow::Result<&mut Park> {
        let park = match self.park.take() {
            Some(park) => park,
            None => {
                // Before, so that there is never more than one of this image.
                let mut finished = self.plan.parkings.iter().filter(|parking| parking.is_finished);
                finished.try_for_each(park::remove).context("cannot take an old work place away")?;
                let park = match self.plan.goes_on_in {
                    Some(index) => self.go_on_in(&self.plan.parkings[index]),
                    None => self.new_park(),
                };
                park?
            }
        };
        Ok(self.park.insert(park))
    }

    fn new_park(&self) -> anyhow::Result<Park> {
        let (before, options) = (self.plan.before.write(), self.plan.wishes.options());
        let notes = Notes { image: self.image, before: &before, options: &options };
        Park::open(&self.root, &self.on_autofs, self.namespace, &self.plan.wanted, &notes)
            .context("cannot make a work place, a tmpfs on /run")
    }

    fn go_on_in(&mut self, parking: &Parking) -> anyhow::Result<Park> {
        self.kept.extend(parking.pipes.iter().filter_map(|keeper| keeper.pipe));
        Park::go_on(&self.root, parking)
            .with_context(|| format!("cannot go on in {}, which a killed restore left", parking.mount_point))
    }

    /// Keeps the pipe of a superblock that is to go open, by a mount: its master takes it for given up when nobody has a
    /// write end any more, and this process may be killed.
    pub(super) fn keep_pipe(&mut self, item: usize) -> anyhow::Result<()> {
        let superblock = &self.plan.image.superblocks[item];
        let planned = &self.plan.items[item];
        let old = planned.old.as_ref().filter(|_| planned.action.makes());
        let (Some(_), Some(pipe)) = (old, self.masters.pipe_of(superblock)) else {
            return Ok(());
        };
        if !self.kept.insert(pipe.write_end.inode) {
            return Ok(());
        }
        let recipe = Recipe {
            // Who walks there asks for nothing: only names in it are triggers.
            options: &Options { mount_type: MountType::Indirect, ..superblock.options.clone() },
            source: &TextPath::from(std::path::PathBuf::from(PIPE_SOURCE)),
            pipe: pipe.write_end.fd.as_fd(),
            group: self.recipes.group,
            attributes: MountAttrFlags::empty(),
            maker: self.recipes.maker,
        };
        let wanted = &self.plan.wanted;
        let made = self.numbers.any_but(|device| wanted.contains(&device), || superblock::create(&recipe));
        let mount = made.context("cannot make a mount that keeps its pipe open")?;
        self.open_park()?.keep_pipe(&mount).context("cannot keep its pipe open")
    }

    /// The work places of others that are there still.
    pub(super) fn left_parkings(&self) -> impl Iterator<Item = &'a Parking> + use<'a> {
        let (plan, is_open) = (self.plan, self.park.is_some());
        let left = plan.parkings.iter().enumerate().filter(move |(index, parking)| {
            // When the own one is opened, those that are finished are taken away.
            !is_open || (Some(*index) != plan.goes_on_in && !parking.is_finished)
        });
        left.map(|(_, parking)| parking)
    }
}
