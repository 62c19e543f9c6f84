#!/usr/bin/env python3
# evaluate_vmamba_td3.py

import torch
import numpy as np
from algorithm.vmamba_td3.vmamba_td3 import make_agent
from envs import classic_gym as gym  # changed: was `import gym`
from config import get_config  # added: as the other script has it

def evaluate_model(model_path, num_episodes=10):
    """模型评估示例"""
    
    # 环境初始化
    env = gym.make("AirSimEnv-v42")
    initial_obs = env.reset()
    
    # 加载配置和agent
    args = get_config()
    agent = make_agent(env, initial_obs, args)
    agent.load(model_path)
    
    # 评估循环
    episode_rewards = []
    episode_lengths = []
    
    for episode in range(num_episodes):
        obs = env.reset()
        episode_reward = 0
        episode_length = 0
        
        while True:
            # 确定性动作选择（无探索噪声）
            action = agent.select_action(obs["base"], obs["depth"], noise=False)
            next_obs, reward, done, info = env.step(action)
            
            episode_reward += reward
            episode_length += 1
            
            if done:
                break
                
            obs = next_obs
        
        episode_rewards.append(episode_reward)
        episode_lengths.append(episode_length)
        
        print(f"Episode {episode + 1}: Reward = {episode_reward:.2f}, "
              f"Length = {episode_length}")
    
    # 统计结果
    print("\nEvaluation Results:")
    print(f"Mean Reward: {np.mean(episode_rewards):.2f} ± {np.std(episode_rewards):.2f}")
    print(f"Mean Length: {np.mean(episode_lengths):.2f} ± {np.std(episode_lengths):.2f}")
    
    return episode_rewards, episode_lengths

if __name__ == "__main__":
    model_path = "models/vmamba_td3_final.pth"
    evaluate_model(model_path)
