#!/usr/bin/env python3
# train_vmamba_td3_advanced.py

import torch
from algorithm.vmamba_td3.vmamba_td3 import VMambaTD3Agent
from algorithm.vmamba_td3.vmamba_td3 import make_agent

def custom_training_loop():
    """自定义训练循环示例"""
    
    # 环境初始化
    from envs import classic_gym as gym  # changed: was `import gym`
    env = gym.make("AirSimEnv-v42")
    
    # 获取初始观测
    initial_obs = env.reset()
    observation = initial_obs  # added: the loop uses it before it has a value
    
    # 创建agent
    args = get_custom_config()
    agent = make_agent(env, initial_obs, args)
    
    # 训练循环
    for timestep in range(args.max_timesteps):
        # 环境交互
        action = agent.select_action(observation["base"], observation["depth"])
        next_obs, reward, done, info = env.step(action)
        
        # 存储经验
        agent.replay_buffer.add(
            observation["base"], observation["depth"], action, reward,
            next_obs["base"], next_obs["depth"], float(done)
        )
        
        # 训练更新
        if timestep >= args.learning_starts:
            metrics = agent.train(progress_ratio=timestep/args.max_timesteps)
            
            if metrics and timestep % 1000 == 0:  # changed: was `if timestep % 1000 == 0:`; too few samples give no metrics
                print(f"Step {timestep}: Actor Loss = {metrics['actor_loss']:.4f}, "
                      f"Critic Loss = {metrics['critic_loss']:.4f}")
        
        # 环境重置
        if done:
            observation = env.reset()
        else:
            observation = next_obs
        
        # 模型保存
        if timestep % args.save_interval == 0:
            agent.save(f"models/vmamba_td3_{timestep}.pth")

def get_custom_config():
    """自定义配置"""
    from config import get_config
    args = get_config()
    
    # 覆盖默认配置
    args.vmamba_hidden_dim = 96
    args.vmamba_num_vss_blocks = [2, 2, 6, 2]
    args.vmamba_temporal_layers = 2
    args.feature_dim = 256
    args.hidden_dim = 512
    
    return args

if __name__ == "__main__":
    custom_training_loop()
